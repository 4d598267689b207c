"""The training loop: a generator of StepReports that does no I/O and holds no context manager across a yield.

Its consumer decides what a report is worth: a line, a picture, an evaluation, a checkpoint. Where the loop
stands is three integers (`Progress`); the batches of any step follow from them and the plan, so a resumed loop
starts at its step without going through the data.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from sftctl.engine.training.step import TrainStep
from sftctl.records import Batch, StepReport

BatchesAt = Callable[[int, int], Sequence[Batch]]
"""(epoch, step within the epoch) -> this rank's micro-batches."""


@dataclass
class Progress:
    """How far a run is: optimiser steps done, and tokens seen, over all ranks."""

    step: int = 0
    num_tokens: int = 0
    num_trained_tokens: int = 0


def peak_memory_bytes(device: torch.device) -> int:
    """Peak of allocated CUDA memory, or of the process's resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def train_steps(
    step: TrainStep,
    batches_at: BatchesAt,
    *,
    progress: Progress,
    steps_per_epoch: int,
    total_steps: int,
    learning_rate_at: Callable[[int], float],
) -> Iterator[StepReport]:
    """Yield a report after each optimiser step from `progress.step` to `total_steps`; `progress` moves along.

    Time between two yields that the consumer spends (evaluating, saving) is not counted as training time.
    """
    while progress.step < total_steps:
        began = time.perf_counter()
        epoch, within = divmod(progress.step, steps_per_epoch)
        batches = batches_at(epoch, within)
        learning_rate = learning_rate_at(progress.step)
        totals = step(batches, learning_rate=learning_rate)
        seconds = time.perf_counter() - began
        progress.step += 1
        progress.num_tokens += totals.num_tokens
        progress.num_trained_tokens += totals.num_supervised
        yield StepReport(
            step=progress.step,
            epoch=progress.step / steps_per_epoch,
            loss=totals.loss,
            learning_rate=learning_rate,
            grad_norm=totals.grad_norm,
            mean_token_accuracy=totals.mean_token_accuracy,
            entropy=totals.entropy,
            num_tokens=progress.num_tokens,
            num_trained_tokens=progress.num_trained_tokens,
            tokens_per_second=totals.num_tokens / seconds,
            step_seconds=seconds,
            peak_memory_bytes=peak_memory_bytes(step.ranks.device),
            samples=tuple(sample for batch in batches for sample in batch.samples),
            router_aux_loss=totals.router_aux_loss,
        )
