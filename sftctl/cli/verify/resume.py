"""`sftctl verify resume FILE…`: two short runs of a configuration, one of them stopped and resumed, compared.

Each run, and the part after the resume too, has a process of its own, so nothing can be carried over in memory.
The second run is stopped as a user would stop it, by a signal. All of it happens in a temporary folder.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sftctl.cli.command import Command
from sftctl.cli.files import FILES
from sftctl.cli.options import Invocation
from sftctl.cli.resolving import apply_environment, resolve_quietly
from sftctl.cli.runner import run_apart
from sftctl.cli.switches import Example, Switch, Usage
from sftctl.cli.terminal import has_colour, styled, write
from sftctl.cli.verify.steps import steps_of
from sftctl.config.resolve import Resolved
from sftctl.config.rules import ready
from sftctl.config.sources.options import Assignment
from sftctl.errors import ConfigError, Interrupted, Problem, TrainingError

if TYPE_CHECKING:
    from sftctl.records import RunResult

DIFFERENT = 1
DEFAULT_STEPS = 8

USAGE = Usage(
    summary="Prove that a run which is stopped and resumed is the run that was never stopped.",
    about=(
        "Two short runs in a temporary folder: one goes through, one is stopped by a signal and resumed in another "
        "process. Losses, learning rates, counters, weights, optimiser and random generators are compared bit for "
        "bit. Bitwise equality is promised on one process in fp32 on a CPU, and on a GPU with "
        "train.full_determinism."
    ),
    words=FILES,
    switches=(
        Switch("steps", f"Length of both runs. [{DEFAULT_STEPS}]", value="STEPS"),
        Switch("at", "Step after which the second run is stopped. [half way]", value="STEP"),
    ),
    examples=(
        Example("sftctl verify resume run.toml", "Stop in the middle of eight steps:"),
        Example("sftctl verify resume run.toml --steps 30 --at 17 --packing", "Longer, with a setting changed:"),
    ),
    takes_leaves=True,
)


def run(invocation: Invocation) -> int:
    steps, at = _steps(invocation)
    with tempfile.TemporaryDirectory(prefix="sftctl-verify-") as folder:
        whole, stopped = (_resolved(invocation, Path(folder), name, steps) for name in ("whole", "stopped"))
        apply_environment(whole)
        _run_apart(f"run 1 of 2: {steps} steps", whole)
        _run_apart(f"run 2 of 2: stopped after step {at}", stopped, stop_after=at)
        _run_apart(f"run 2 of 2: resumed, up to step {steps}", stopped)
        return _compare(Path(folder), at)


def _steps(invocation: Invocation) -> tuple[int, int]:
    """How long, and where to stop. Raises ConfigError for what is no such number."""
    steps = steps_of(invocation, "steps", DEFAULT_STEPS)
    at = steps_of(invocation, "at", max(1, steps // 2))
    if at >= steps:
        message = f"--at {at} is not before the end of {steps} steps"
        raise ConfigError(Problem("", message, help="give a larger --steps, or a smaller --at"))
    return steps, at


def _resolved(invocation: Invocation, folder: Path, name: str, steps: int) -> Resolved:
    """The configuration, short, silent to trackers, and in `folder`."""
    own = {
        "run.output_dir": str(folder),
        "run.run_name": name,
        "run.overwrite": "false",
        "train.max_steps": str(steps),
        "checkpoint.save_steps": str(steps),
        "checkpoint.resume": "auto",
        "checkpoint.save_final": "true",
        "log.logging_steps": "1",
    }
    others = [each for each in invocation.assignments if _path_of(each) not in {*own, "log.report_to"}]
    added = [Assignment("verify", "option", path, text) for path, text in own.items()]
    silent = Assignment("verify", "set", None, "log.report_to=[]")
    resolved = resolve_quietly(invocation._replace(assignments=(*others, *added, silent)))
    if missing := ready(resolved.facts):
        raise ConfigError(*missing)
    return resolved


def _path_of(assignment: Assignment) -> str:
    return assignment.path or (assignment.text or "").partition("=")[0].strip(" ~+")


def _run_apart(title: str, resolved: Resolved, *, stop_after: int | None = None) -> None:
    write(styled(title, "bold", colour=has_colour(sys.stdout)))
    ended = run_apart(partial(_train, resolved, stop_after))
    if ended.problem:
        raise TrainingError(Problem("", f"{title}: {ended.problem}", help="'sftctl train' with these files says more"))
    if ended.stopped:
        raise Interrupted(Problem("", "by you: nothing was proven"))


def _train(resolved: Resolved, stop_after: int | None) -> RunResult | None:
    from sftctl.engine.ranks.launch import in_ranks  # torch: in the child alone

    try:
        return in_ranks(resolved.bundle.distributed, partial(_train_rank, resolved, stop_after))
    except Interrupted:
        if stop_after is None:
            raise
        return None


def _train_rank(resolved: Resolved, stop_after: int | None) -> RunResult | None:
    from sftctl.engine.driver import train  # torch: in the child alone
    from sftctl.engine.run.reporter import Silent
    from sftctl.records import StepReport

    class Stopper(Silent):
        """Sends this process the signal that a user would."""

        def step(self, report: StepReport) -> None:
            if report.step == stop_after:
                os.kill(os.getpid(), signal.SIGTERM)

    return train(resolved.bundle, resolved=resolved, reporter=Stopper(), recipe="verify", command=sys.argv)


def _compare(folder: Path, at: int) -> int:
    from sftctl.runs.comparison import compare_runs  # when there is something to compare

    found = compare_runs(folder / "whole", folder / "stopped")
    for line in found.equal:
        write(f"equal  {line}")
    for line in found.differences:
        write(f"DIFFERENT  {line}")
    if found.differences:
        write(f"the run that was stopped after step {at} is not the run that was never stopped")
        return DIFFERENT
    write(f"the run that was stopped after step {at} is the run that was never stopped, bit for bit")
    return 0


command = Command("resume", USAGE, run)
