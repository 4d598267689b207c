"""What a checkpoint costs: rates of saving and loading against the disk's own, measured in turn in one run.

    python benchmarks/checkpoint.py                          # the shapes of SmolLM2-135M, with Adam: 1.6 GB
    python benchmarks/checkpoint.py --folder /data/tmp --rounds 5
    python benchmarks/checkpoint.py --model FOLDER           # a real model instead of its shapes
    python benchmarks/checkpoint.py --parameters 10          # millions, for a quick look

Per round, in an order that turns from round to round: the disk (the same number of bytes from memory into one file,
16 MiB at a time, flushed at the end; and once more with a flush every 256 MiB beside the writing: the faster of the
two is the disk's rate); a synchronous save; an asynchronous one, whose stall is the time `save` takes and whose end
is when `wait` returns. Then verifying every hash, and loading. The table holds medians.

Goals: a synchronous save at no less than half the disk's rate; a stall of at most a fifth of a synchronous save;
both within a round, the median over the rounds. The exit code is 1 where either is missed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from sftctl.engine.ranks.distributed import Ranks
from sftctl.engine.saving.checkpoint import Checkpointer
from sftctl.engine.saving.training_state import TrainingState, tensors_of

SMOLLM2 = (30, 576, 1536, 192, 49152)
"""Layers, hidden size, intermediate size, key and value size, vocabulary of SmolLM2-135M."""


def shapes(
    layers: int, hidden: int, intermediate: int, kv: int, vocabulary: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "embed", (vocabulary, hidden)
    for layer in range(layers):
        for name in ("q", "o"):
            yield f"layers.{layer}.{name}", (hidden, hidden)
        for name in ("k", "v"):
            yield f"layers.{layer}.{name}", (kv, hidden)
        for name in ("gate", "up"):
            yield f"layers.{layer}.{name}", (intermediate, hidden)
        yield f"layers.{layer}.down", (hidden, intermediate)
        for name in ("norm1", "norm2"):
            yield f"layers.{layer}.{name}", (hidden,)
    yield "norm", (hidden,)


def weights_of(model: Path | None, millions: float | None) -> dict[str, torch.nn.Parameter]:
    """A model's, or random ones of the shapes of SmolLM2-135M or of a smaller thing like it."""
    if model is not None:
        from transformers import AutoModelForCausalLM  # seconds

        return dict(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).named_parameters())
    layers, hidden, intermediate, kv, vocabulary = SMOLLM2
    if millions is not None:
        vocabulary, layers = max(1, int(millions * 1e6 / hidden / 2)), max(1, int(millions * 1e6 / 2 / 3_540_096))
    named = dict(shapes(layers, hidden, intermediate, kv, vocabulary))
    return {name: torch.nn.Parameter(torch.randn(shape)) for name, shape in named.items()}


def training_state(weights: dict[str, torch.nn.Parameter]) -> TrainingState:
    """`weights`, and AdamW's moments after one step."""
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-3, fused=True)
    for parameter in weights.values():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return TrainingState(weights, optimizer)


def write_plainly(path: Path, data: memoryview, *, flush_every: int | None = None) -> None:
    """The disk's own rate: sequential writes of 16 MiB, the device flushed at the end, or also on the way."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    with ThreadPoolExecutor(1) as pool:
        for start in range(0, len(data), 16 << 20):
            os.write(descriptor, data[start : start + (16 << 20)])
            if flush_every and start and start % flush_every == 0:
                pool.submit(os.fdatasync, descriptor)
    os.fsync(descriptor)
    os.close(descriptor)


@contextmanager
def timed(into: dict[str, list[float]], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    into.setdefault(name, []).append(time.perf_counter() - began)


def measure(folder: Path, state: TrainingState, rounds: int) -> dict[str, list[float]]:
    alone = Ranks(0, 1, torch.device("cpu"))
    make = partial(
        Checkpointer, folder / "checkpoints", state, ranks=alone, settings={}, identity={}, save_total_limit=1
    )
    plain, threaded = make(async_save=False), make(async_save=True)
    num_bytes = sum(tensor.nbytes for tensor in tensors_of(state).values())
    data = torch.randint(0, 255, (num_bytes,), dtype=torch.uint8).numpy().data
    seconds: dict[str, list[float]] = {}
    threaded.save(0, meta={}, wait=True)  # its host buffers are made once
    steps = itertools.count(1)

    def disk(name: str, flush_every: int | None) -> None:
        with timed(seconds, name):
            write_plainly(folder / "plain.bin", data, flush_every=flush_every)
        (folder / "plain.bin").unlink()

    def save() -> None:
        with timed(seconds, "save"):
            plain.save(next(steps), meta={})

    def save_aside() -> None:
        with timed(seconds, "asynchronous save, until done"):
            with timed(seconds, "asynchronous save, stall"):
                threaded.save(next(steps), meta={})
            threaded.wait()

    turns = [
        lambda: disk("disk, one flush", None),
        lambda: disk("disk, flushed on the way", 256 << 20),
        save,
        save_aside,
    ]
    for number in range(rounds):
        for turn in turns[number % 4 :] + turns[: number % 4]:
            turn()
    for _ in range(rounds):  # after the saves: a run loads before its first one, and its tensors then stay in place
        with timed(seconds, "verify"):
            found = plain.latest()
        assert found is not None
        with timed(seconds, "load"):
            plain.load(found)
    return seconds


def report(seconds: dict[str, list[float]], num_bytes: int) -> int:
    disk = [min(pair) for pair in zip(seconds["disk, one flush"], seconds["disk, flushed on the way"], strict=True)]
    print(f"{num_bytes / 1e9:.2f} GB, {len(disk)} rounds, medians\n")
    print("| | seconds | MB/s |\n|---|---|---|")
    for name, values in seconds.items():
        value = statistics.median(values)
        print(f"| {name} | {value:.2f} ({min(values):.2f} to {max(values):.2f}) | {num_bytes / value / 1e6:,.0f} |")
    rate = statistics.median(d / s for d, s in zip(disk, seconds["save"], strict=True))
    stalls = zip(seconds["asynchronous save, stall"], seconds["save"], strict=True)
    stall = statistics.median(stall / save for stall, save in stalls)
    print(f"\nsave / disk, within a round: {rate:.2f} of its rate (goal: 0.50)")
    print(f"stall / save, within a round: {stall:.2f} (goal: 0.20)")
    return 0 if rate >= 0.5 and stall <= 0.2 else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="a folder on the disk to measure; none: the temporary one")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--model", type=Path, help="a folder with a model to save")
    parser.add_argument("--parameters", type=float, help="millions of parameters instead of SmolLM2-135M")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=arguments.folder))
    try:
        state = training_state(weights_of(arguments.model, arguments.parameters))
        seconds = measure(folder, state, arguments.rounds)
        return report(seconds, sum(tensor.nbytes for tensor in tensors_of(state).values()))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
