"""`sftctl plan [FILE…]`: what a run will take of memory, before anything loads."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from sftctl.cli.command import Command
from sftctl.cli.figures import share, size
from sftctl.cli.files import FILES
from sftctl.cli.options import Invocation
from sftctl.cli.resolving import apply_environment, resolve_invocation
from sftctl.cli.switches import Example, Switch, Usage
from sftctl.cli.terminal import has_colour, styled, text_table, write
from sftctl.errors import ConfigError, Problem

if TYPE_CHECKING:
    from sftctl.engine.planning import Device, RunPlan

USAGE = Usage(
    summary="Plan a run's memory before anything loads, and find the cheapest change with which it fits.",
    about=(
        "Counts weights, gradients, optimiser, activations and head of one process at its peak, for full sequences of "
        "sft.max_length, on a model that has shapes and no bytes. Exit code 0: it fits, 1: it does not."
    ),
    words=FILES,
    switches=(
        Switch("device", "Plan for this kind of device. [this machine's]", choices=("cpu", "cuda")),
        Switch("memory", "Plan for so much memory, as 80GB or 24GiB. [this device's]", value="SIZE"),
        Switch("format", "How it is written. [table]", choices=("table", "json")),
    ),
    examples=(
        Example("sftctl plan run.toml", "On this machine:"),
        Example("sftctl plan run.toml --device cuda --memory 80GB", "On another one:"),
        Example("sftctl plan run.toml --use-peft --max-length 4096", "With settings changed:"),
    ),
    takes_leaves=True,
)

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
DOES_NOT_FIT = 1


def run(invocation: Invocation) -> int:
    memory = _bytes(invocation.text("memory"))
    device = cast("Device | None", invocation.text("device") or None)
    resolved = resolve_invocation(invocation)
    apply_environment(resolved)
    from sftctl.engine.planning import plan_run  # torch: which the errors before do not need

    planned = plan_run(resolved.bundle, device=device, memory=memory)
    if not planned.memory:
        message = "this machine has no CUDA device whose memory could be asked"
        raise ConfigError(Problem("--device", message, help="add --memory 80GB"))
    if invocation.text("format", "table") == "json":
        write(json.dumps(_as_data(planned), indent=2))
    else:
        write("\n".join(_table(planned, colour=has_colour(sys.stdout))))
    return 0 if planned.fits else DOES_NOT_FIT


def _bytes(text: str) -> int | None:
    """ "80GB" -> 80,000,000,000; "24GiB" -> 24 * 2**30."""
    if not text:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", text.strip().upper())
    if found is None or found[2] not in _UNITS:
        raise ConfigError(Problem("--memory", f"{text!r} is no amount of memory", help="write 80GB or 24GiB"))
    return int(float(found[1]) * _UNITS[found[2]])


def _table(planned: RunPlan, *, colour: bool) -> Iterator[str]:
    total = planned.plan.total
    rows = [(name, size(number), share(number, total)) for name, number in planned.plan.parts.items() if number]
    rows.append(("peak", size(total), ""))
    yield from text_table(("for", ">bytes", ">share"), rows, colour=colour)
    if planned.plan.host:
        yield f"and {size(planned.plan.host)} in host memory"
    yield (
        f"{planned.num_trained:,} of {planned.num_parameters:,} parameters train, in {planned.precision}; "
        f"{planned.tokens_per_micro_batch:,} tokens a micro-batch"
    )
    there = f"the {planned.device} device has {size(planned.memory)}"
    if planned.fits:
        yield f"{there}: it fits, {size(planned.memory - total)} are left"
        return
    yield styled(f"{there}: {size(total - planned.memory)} are missing", "red", colour=colour)
    if planned.change is None:
        yield "no change of batch, checkpointing, adapter or length is enough: take a smaller model or more devices"
    else:
        yield f"the cheapest change that fits: {planned.change} in {size(planned.change.plan.total)}"


def _as_data(planned: RunPlan) -> dict[str, Any]:
    change = planned.change
    return {
        "device": planned.device,
        "memory_bytes": planned.memory,
        "precision": planned.precision,
        "num_parameters": planned.num_parameters,
        "num_trained_parameters": planned.num_trained,
        "tokens_per_micro_batch": planned.tokens_per_micro_batch,
        "bytes": dict(planned.plan.parts),
        "host_bytes": planned.plan.host,
        "peak_bytes": planned.plan.total,
        "fits": planned.fits,
        "change": None
        if change is None
        else {"settings": dict(change.settings), "peak_bytes": change.plan.total, "trains_the_same": change.same},
    }


command = Command("plan", USAGE, run)
