"""What is particular to a device, by the same tests on each: `pytest -m cuda` runs them on a GPU, plain pytest here.

On a CPU they show that a test can pass; that the code for CUDA does, only a GPU can show. Where there is one, runs of
the command line take it by themselves, so all of tests/trajectory/ but what needs several devices runs there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sftctl.engine import assemble
from sftctl.engine.memory.offloading import ActivationOffloading
from sftctl.engine.model.attention import varlen_attention
from sftctl.engine.model.documents import Documents
from sftctl.engine.ranks.sharding import Sharded
from sftctl.engine.training.step import TrainStep

HAS_CUDA = torch.cuda.is_available()
CUDA = pytest.param("cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not HAS_CUDA, reason="needs a CUDA device")])
DEVICES = pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.skipif(HAS_CUDA, reason="runs take the GPU")), CUDA]
)


def losses(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


def device_of(run: Path) -> str:
    return str(json.loads((run / "environment.json").read_text())["device"]).partition(":")[0]


# ---------------------------------------------------------------------- FSDP2


@pytest.fixture
def group_of_one(tmp_path: Path) -> Iterator[None]:
    """A process group with one rank in it, over nccl on CUDA."""
    backend = "cpu:gloo,cuda:nccl" if HAS_CUDA else "gloo"
    dist.init_process_group(backend, init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@DEVICES
@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        (["--precision=fp32"], 1e-5),
        (["--precision=bf16"], 5e-3),
        (["--precision=bf16", "--gradient-checkpointing=selective", "--activation-offloading", "--packing"], 5e-3),
    ],
    ids=["fp32", "bf16", "bf16, selective, offloaded"],
)
def test_one_rank_under_fsdp_learns_what_one_process_does(
    device: str,
    options: list[str],
    tolerance: float,
    train: Callable[..., Path],
    group_of_one: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Groups, gathered weights, mixed precision and saving: all of FSDP2 but another rank."""
    made: list[Sharded] = []

    def sharded(*given: Any, **named: Any) -> Sharded:
        made.append(Sharded(*given, **named))
        return made[-1]

    plain = losses(train(*options, "--max-steps=8", name="plain"))
    monkeypatch.setattr(assemble, "resolve_strategy", lambda strategy, world_size: "fsdp")
    monkeypatch.setattr(assemble, "Sharded", sharded)
    run = train(*options, "--max-steps=8", "--save-final", name="fsdp")
    assert len(made) == 1
    assert device_of(run) == device
    assert losses(run) == pytest.approx(plain, rel=tolerance)
    assert (run / "final" / "model.safetensors").is_file()


# ---------------------------------------------------------------------- attention


def attention_of(tensors: list[Tensor], documents: Documents, window: int | None) -> list[Tensor]:
    """Output, and the gradients of queries, keys and values."""
    module = nn.Module()
    module.is_causal = True  # type: ignore[assignment]
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    out, _ = varlen_attention(module, *leaves, documents=documents, sliding_window=window)
    (out.float() * torch.linspace(-1, 1, out.shape[-1], device=out.device)).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


REAL = {"llama 3 8B": (32, 8, 128), "SmolLM2 135M": (9, 3, 64), "no shared keys": (16, 16, 64)}


@DEVICES
@pytest.mark.parametrize("window", [None, 256])
@pytest.mark.parametrize("shape", REAL)
def test_attention_of_real_shapes_in_bf16_is_that_of_float32(device: str, shape: str, window: int | None) -> None:
    """On CUDA torch's varlen kernel against our own products; documents of 1 to 1,000 tokens in one row."""
    torch.manual_seed(0)
    H, K, D = REAL[shape]
    lengths = [1000, 1, 130, 517, 16]
    documents = Documents(np.cumsum([0, *lengths], dtype=np.int32))
    tensors = [torch.randn(1, heads, sum(lengths), D, device=device) for heads in (H, K, K)]
    exact = attention_of([tensor.bfloat16().float() for tensor in tensors], documents, window)
    half = attention_of([tensor.bfloat16() for tensor in tensors], documents, window)
    for actual, expected in zip(half, exact, strict=True):
        assert actual.dtype == torch.bfloat16
        assert (actual.float() - expected).norm() < 0.01 * expected.norm()


# ---------------------------------------------------------------------- memory


@DEVICES
def test_memory_that_runs_out_is_said_with_the_plan(
    device: str, train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The allocator's own error, of a tensor that no machine holds."""

    def too_much(step: TrainStep, *given: Any) -> Tensor:
        return torch.empty(2**50, dtype=torch.uint8, device=step.ranks.device)

    monkeypatch.setattr(TrainStep, "_accumulate", too_much)
    run = train(code=1)
    said = capsys.readouterr().err
    assert device_of(run) == device
    assert "out of memory: " in said
    assert "the plan has " in said
    assert "= help: set train.per_device_train_batch_size = 12 and train.gradient_accumulation_steps = 2" in said


@DEVICES
def test_offloading_changes_no_loss(device: str, train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA by side streams and pinned memory, in bf16: the same bits."""
    made: list[ActivationOffloading] = []

    def offload(model: Any) -> ActivationOffloading:
        made.append(ActivationOffloading(model, min_offload_bytes=0))
        return made[-1]

    options = ["--precision=bf16", "--gradient-checkpointing=true", "--max-steps=8"]
    plain = losses(train(*options, name="plain"))
    monkeypatch.setattr(assemble, "ActivationOffloading", offload)
    run = train(*options, "--activation-offloading", name="offloaded")
    assert device_of(run) == device
    assert made[0].statistics.bytes_to_host > 0
    assert losses(run) == plain
