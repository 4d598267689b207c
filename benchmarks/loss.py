"""The head and loss of one micro-batch, forward and backward: time and memory, beside what others do.

    python benchmarks/loss.py                                  # ours, whole logits, the bare products
    python benchmarks/loss.py --peer /path/to/python           # and TRL's fused head, in an interpreter that has it
    python benchmarks/loss.py --tokens 1100 --vocab 49152 --dims 576 --dtype bfloat16 --rounds 9 --json loss.json

Random hidden states, all supervised, head in the same dtype. Each contender runs in a process of its own that stays
alive; rounds go to all in turn, so all see the same machine. The table holds medians of wall-clock and of processor
seconds, and the process's peak memory above what it held with inputs made.

- products: the three matrix products that any exact loss needs, alone; the floor.
- ours: `linear_cross_entropy`, the head's gradient into a float32 sink, as a training step uses it.
- ours, no sink: the head's gradient through autograd, in the head's dtype.
- whole logits: `F.cross_entropy(logits.float())` as in Transformers, with the accuracy and entropy a trainer logs.
- peer: TRL's `ChunkedLogProbFunction` with its log-probability, entropy and accuracy outputs.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CONTENDERS = ("products", "ours", "ours, no sink", "whole logits")
PEER_CHUNK = 8192  # TRL's default width of a vocabulary chunk


@dataclass
class Inputs:
    """One micro-batch of supervised positions and a head."""

    tokens: int
    vocab: int
    dims: int
    dtype: str
    hidden: Tensor = field(init=False)
    weight: Tensor = field(init=False)
    labels: Tensor = field(init=False)
    bias: None = None
    softcap: None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        device, dtype = "cuda" if torch.cuda.is_available() else "cpu", getattr(torch, self.dtype)
        self.hidden = torch.randn(self.tokens, self.dims, device=device, dtype=dtype).requires_grad_()
        self.weight = torch.randn(self.vocab, self.dims, device=device, dtype=dtype).mul_(0.05).requires_grad_()
        self.labels = torch.randint(self.vocab, (self.tokens,), device=device)


def products(inputs: Inputs) -> Callable[[], None]:
    hidden, weight = inputs.hidden.detach(), inputs.weight.detach()

    def run() -> None:
        logits = hidden @ weight.T
        _ = logits @ weight, logits.T @ hidden

    return run


def ours(inputs: Inputs, *, sink: bool = True) -> Callable[[], None]:
    from sftctl.engine.training.losses import GradSink, linear_cross_entropy  # the peer's interpreter has no sftctl

    share = 1 / inputs.tokens
    wide = GradSink(torch.zeros_like(inputs.weight, dtype=torch.float32), share) if sink else None

    def run() -> None:
        sums = linear_cross_entropy(inputs.hidden, inputs, inputs.labels, grad_sink=wide)
        (sums.loss * share).backward()

    return run


def whole_logits(inputs: Inputs) -> Callable[[], None]:
    def run() -> None:
        logits = (inputs.hidden @ inputs.weight.T).float()
        torch.nn.functional.cross_entropy(logits, inputs.labels).backward()
        with torch.no_grad():
            _ = (logits.argmax(-1) == inputs.labels).sum()
            log_probs = logits.log_softmax(-1)
            _ = -(log_probs.exp() * log_probs).sum()

    return run


def peer(inputs: Inputs) -> Callable[[], None]:
    from trl.kernels import ChunkedLogProbFunction

    outputs = ("log_probs", "entropy", "is_top1")

    def run() -> None:
        log_probs, *_ = ChunkedLogProbFunction.apply(
            inputs.hidden, inputs.weight, None, inputs.labels, 1.0, PEER_CHUNK, None, 1.0, outputs
        )
        (-log_probs.sum() / inputs.tokens).backward()

    return run


def make(name: str, inputs: Inputs) -> Callable[[], None]:
    table: dict[str, Callable[[], Callable[[], None]]] = {
        "products": lambda: products(inputs),
        "ours": lambda: ours(inputs),
        "ours, no sink": lambda: ours(inputs, sink=False),
        "whole logits": lambda: whole_logits(inputs),
        "peer": lambda: peer(inputs),
    }
    return table[name]()


def serve(name: str, inputs: Inputs) -> None:
    """Once for each line of standard input; answers with wall-clock seconds, processor seconds, peak megabytes."""
    run = make(name, inputs)
    before = peak_megabytes()
    for line in sys.stdin:
        inputs.hidden.grad = inputs.weight.grad = None
        began, cpu_began = time.perf_counter(), time.process_time()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
        assert line
        print(json.dumps([seconds, cpu_seconds, peak_megabytes() - before]), flush=True)


def peak_megabytes() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def measure(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    names = [*CONTENDERS, *(["peer"] if options.peer else [])]
    shape = [f"--{key}={getattr(options, key)}" for key in ("tokens", "vocab", "dims", "dtype")]
    servers = {
        name: subprocess.Popen(
            [options.peer if name == "peer" else sys.executable, __file__, f"--serve={name}", *shape],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in names
    }
    answers: dict[str, list[list[float]]] = {name: [] for name in names}
    for number in range(options.rounds + 1):
        for name, server in servers.items():
            assert server.stdin is not None
            assert server.stdout is not None
            print("run", file=server.stdin, flush=True)
            answer = json.loads(server.stdout.readline())
            if number:  # the first warms up
                answers[name].append(answer)
    for server in servers.values():
        server.communicate()
    keys = ("seconds", "cpu_seconds", "peak_megabytes")
    return {
        name: {key: statistics.median(column) for key, column in zip(keys, zip(*rounds, strict=True), strict=True)}
        for name, rounds in answers.items()
    }


def table(results: dict[str, dict[str, float]]) -> str:
    floor = results["products"]
    lines = [
        "| | seconds | of the products | processor seconds | of the products | peak MB above inputs |",
        "|-|-|-|-|-|-|",
    ]
    for name, row in results.items():
        cells = (
            f"{row['seconds']:.3f}",
            f"{row['seconds'] / floor['seconds']:.2f}",
            f"{row['cpu_seconds']:.3f}",
            f"{row['cpu_seconds'] / floor['cpu_seconds']:.2f}",
            f"{row['peak_megabytes']:.0f}",
        )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=1100)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--dims", type=int, default=576)
    parser.add_argument("--dtype", choices=["bfloat16", "float32", "float16"], default="bfloat16")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peer", help="an interpreter that has trl")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = options_of(arguments)
    shape: dict[str, Any] = {key: getattr(options, key) for key in ("tokens", "vocab", "dims", "dtype")}
    if options.serve:
        serve(options.serve, Inputs(**shape))
        return
    results = measure(options)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    where = f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(
        f"{shape['tokens']} tokens x {shape['vocab']} x {shape['dims']}, {shape['dtype']}; {where}\n\n{table(results)}"
    )
    if options.json:
        options.json.write_text(json.dumps({"shape": shape, "where": where, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
