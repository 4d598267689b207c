"""Faults of the machine while a run goes on, said as a user needs to hear them.

A disk that fills up in the middle is no bad input: the run failed (exit code 1), and the same command goes on from
its last checkpoint. Memory that runs out is said with the memory plan and the cheapest change that needs less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from sftctl.errors import Problem, RunError, SftctlError, TrainingError

_CPU_ALLOCATION = "DefaultCPUAllocator"
"""How torch's CPU allocator names itself in the RuntimeError that it raises."""


@contextmanager
def failing_run() -> Iterator[None]:
    """Once a run has begun: what its directory refuses is a failure of the run, and no longer of what was given."""
    try:
        yield
    except RunError as error:
        raise TrainingError(*error.problems) from error


@contextmanager
def memory_said(plan: Callable[[], tuple[str, str | None]], **settings: Any) -> Iterator[None]:
    """Turn an error of memory that ran out into a TrainingError with the plan and the cheapest change.

    `plan` gives both; where it cannot, or has no change, the settings that would need less (`less_memory`) are said.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        planned, change = "", None
        with suppress(SftctlError, RuntimeError, MemoryError):  # what is said of the error must not hide it
            planned, change = plan()
        message = f"out of memory: {_first_line(error)}" + (f"; {planned}" if planned else "")
        help = change or "; or ".join(less_memory(**settings))
        raise TrainingError(Problem("", message, help=help)) from error


def is_out_of_memory(error: BaseException) -> bool:
    """A device's allocator, the host's, or Python's own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or _CPU_ALLOCATION in str(error)


def less_memory(
    *,
    per_device_train_batch_size: int,
    gradient_accumulation_steps: int,
    gradient_checkpointing: bool | str,
    activation_offloading: bool,
    max_length: int,
) -> list[str]:
    """The settings that need less memory, those that train the same first and the faster of them before the slower."""
    changes = []
    if per_device_train_batch_size > 1:
        half = -(-per_device_train_batch_size // 2)
        changes.append(
            f"set train.per_device_train_batch_size = {half} and "
            f"train.gradient_accumulation_steps = {2 * gradient_accumulation_steps}, which trains the same"
        )
    if gradient_checkpointing is not True:
        changes.append("set train.gradient_checkpointing = true")
    if not activation_offloading:
        changes.append("set sft.activation_offloading = true")
    changes.append(f"lower sft.max_length (now {max_length})")
    return changes


def _first_line(error: BaseException) -> str:
    """What was asked for, without the allocator's advice on its own settings."""
    text = (str(error).splitlines() or [""])[0]
    text = text.rpartition(f"{_CPU_ALLOCATION}: ")[2]
    return text.split(" See documentation")[0].split(" If reserved")[0][:300] or type(error).__name__
