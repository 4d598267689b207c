"""Activation offloading: what it saves, what it costs, and how much of the transfer did not hide.

    python benchmarks/offloading.py                                       # a small model; on a CPU only bytes are real
    python benchmarks/offloading.py --hidden 4096 --layers 8 --length 8192 --rounds 5     # on a GPU

One forward and backward pass of a random Llama-shaped model in bf16 (float32 on a CPU), fused head, for each of: as it
is; gradient checkpointing; both with offloading. Medians over the rounds. On a CUDA device:

- peak: memory above the model's, at its highest.
- moved: bytes to the host in a pass (and back).
- stalled: time the device waited for transfers. A transfer that hides stalls nothing.
- predicted: transfer / compute = F / (12 · h · B) for offloading alone, F this run's own FLOP/s without it, B the
  link's bytes a second, measured here. Below 1 it can hide.

On a CPU "host memory" is where the tensors are: copies cost time and save nothing, and no stall is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from sftctl.engine.memory.offloading import ActivationOffloading
from sftctl.engine.model.checkpointing import set_gradient_checkpointing
from sftctl.engine.model.head import find_head
from sftctl.engine.training.losses import linear_cross_entropy


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    seconds: float
    peak_bytes: int
    bytes_to_host: int
    stall_seconds: float | None


def model_of(options: argparse.Namespace, device: torch.device) -> Any:
    config = LlamaConfig(
        vocab_size=options.vocab,
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 7 // 2,
        num_hidden_layers=options.layers,
        num_attention_heads=max(1, options.hidden // 128),
        num_key_value_heads=max(1, options.hidden // 512),
        max_position_embeddings=options.length,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return AutoModelForCausalLM.from_config(config, dtype=dtype).to(device)


def one_pass(model: Any, ids: torch.Tensor, around: contextlib.AbstractContextManager[Any]) -> None:
    head = find_head(model)
    assert head is not None
    model.zero_grad(set_to_none=True)
    with around:
        hidden = head.backbone(input_ids=ids, use_cache=False).last_hidden_state
        sums = linear_cross_entropy(hidden, head, ids.roll(-1, 1))
        (sums.loss / sums.count).backward()


def measure(model: Any, ids: torch.Tensor, name: str, checkpointing: bool, offload: bool, rounds: int) -> Row:
    set_gradient_checkpointing(model, checkpointing)
    model.train()
    cuda = ids.is_cuda
    offloading = ActivationOffloading(model, measure_stalls=cuda) if offload else None
    seconds, peaks = [], []
    for _ in range(rounds + 1):
        before = offloading.statistics if offloading else None
        with watched(cuda) as seen:
            one_pass(model, ids, offloading or contextlib.nullcontext())
        seconds.append(seen["seconds"])
        peaks.append(int(seen["peak_bytes"]))
    after = offloading.statistics if offloading else None
    return Row(
        name,
        statistics.median(seconds[1:]),
        max(peaks),
        after.bytes_to_host // after.passes if after else 0,
        (after.stall_seconds - before.stall_seconds) if after and before and after.stall_seconds is not None else None,
    )


@contextlib.contextmanager
def watched(cuda: bool) -> Iterator[dict[str, float]]:
    seen: dict[str, float] = {"peak_bytes": 0}
    base = 0
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
    began = time.perf_counter()
    yield seen
    if cuda:
        torch.cuda.synchronize()
        seen["peak_bytes"] = torch.cuda.max_memory_allocated() - base
    seen["seconds"] = time.perf_counter() - began


def link_bytes_per_second() -> float:
    """Pinned host memory to the device, 256 MiB, best of five."""
    host = torch.empty(2**28, dtype=torch.uint8, pin_memory=True)
    device = torch.empty_like(host, device="cuda")
    best = 0.0
    for _ in range(5):
        with watched(True) as seen:
            device.copy_(host, non_blocking=True)
        best = max(best, host.numel() / seen["seconds"])
    return best


def predicted_ratio(model: Any, ids: torch.Tensor, seconds: float) -> float:
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    flops = 6 * num_parameters * ids.numel() / seconds
    return flops / (12 * model.config.hidden_size * link_bytes_per_second())


def table(rows: list[Row]) -> str:
    lines = ["| | seconds | peak MB | moved MB | stalled ms |", "|-|-|-|-|-|"]
    for row in rows:
        stalled = "" if row.stall_seconds is None else f"{1000 * row.stall_seconds:.1f}"
        peak = f"{row.peak_bytes / 1e6:.0f}" if row.peak_bytes else ""
        lines.append(f"| {row.name} | {row.seconds:.3f} | {peak} | {row.bytes_to_host / 1e6:.0f} | {stalled} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, default in (("hidden", 512), ("layers", 4), ("length", 1024), ("vocab", 4096), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(arguments)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    model = model_of(options, device)
    ids = torch.randint(options.vocab, (1, options.length), device=device)
    rows = [
        measure(model, ids, name, checkpointing, offload, options.rounds)
        for name, checkpointing, offload in (
            ("as it is", False, False),
            ("offloading", False, True),
            ("checkpointing", True, False),
            ("checkpointing, offloading", True, True),
        )
    ]
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU: copies are synchronous and save nothing"
    print(f"{options.layers} layers of {options.hidden}, {options.length} tokens; {where}; torch {torch.__version__}\n")
    print(table(rows))
    if device.type == "cuda":
        ratio = predicted_ratio(model, ids, rows[0].seconds)
        print(f"\npredicted transfer / compute without checkpointing: {ratio:.2f}")


if __name__ == "__main__":
    main()
