"""`sftctl train [FILE…] [options]`: resolve, prove, train."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING

from sftctl.cli.command import Command
from sftctl.cli.files import FILES
from sftctl.cli.options import Invocation
from sftctl.cli.resolving import apply_environment, origins_told, resolve_invocation
from sftctl.cli.switches import Example, Switch, Usage
from sftctl.cli.terminal import is_terminal
from sftctl.config.rules import ready
from sftctl.errors import ConfigError

if TYPE_CHECKING:
    from sftctl.config.resolve import Resolved
    from sftctl.engine.run.reporter import Reporter
    from sftctl.records import RunResult

USAGE = Usage(
    summary="Fine-tune a model as the files, the environment and the options say.",
    about=(
        "Later files win over earlier ones, SFTCTL_GROUP__KEY variables over files, options over both. All that "
        "can be checked is checked before the weights load, and every problem is shown at once. The run "
        "directory holds the configuration, the metrics, what was left out of the data, and the final model.\n\n"
        "Exit code 0 done, 1 training failed, 2 something to mend in what was given, 3 stopped with a checkpoint: "
        "the same command goes on from it."
    ),
    words=FILES,
    switches=(Switch("dry-run", "Stop before the weights load, having checked all that can be checked."),),
    examples=(
        Example("sftctl train recipe:quickstart", "A whole run in a minute, without a GPU or a network:"),
        Example(
            "sftctl train --model-name-or-path MODEL --dataset rows.jsonl --packing",
            "Your rows on a small model, without a file:",
        ),
        Example("sftctl train run.toml --learning-rate 1e-4 --run-name higher", "A file, with changes:"),
    ),
    takes_leaves=True,
    lists_leaves=True,
)


def run(invocation: Invocation) -> None:
    resolved = _resolve(invocation)
    train_resolved(resolved, invocation)


def _resolve(invocation: Invocation) -> Resolved:
    """The configuration, ready to train. Where torchrun has started many of us, one tells what is wrong with it."""
    try:
        resolved = resolve_invocation(invocation)
        if missing := ready(resolved.facts):
            raise ConfigError(*missing)
    except ConfigError as error:
        if _is_silent():
            from sftctl.engine.ranks.launch import leave_quietly  # never in a run of one process

            leave_quietly(error.exit_code)
        raise
    return resolved


def _is_silent() -> bool:
    """Whether this is a process among several, and not the first."""
    return os.environ.get("RANK", "0") != "0"


def train_resolved(resolved: Resolved, invocation: Invocation) -> RunResult | None:
    """Train what was resolved, telling this terminal or log file; None after a dry run."""
    apply_environment(resolved)
    from sftctl.engine.ranks.launch import in_ranks  # only where something is trained

    return in_ranks(resolved.bundle.distributed, partial(_train_here, resolved, invocation))


def _train_here(resolved: Resolved, invocation: Invocation) -> RunResult | None:
    """In each process: train, the first of them telling."""
    with origins_told(resolved), _reporter(logging_steps=resolved.bundle.log.logging_steps) as reporter:
        reporter.stage("start torch")
        from sftctl.engine.driver import train  # torch: only once there is something to train

        gc.enable()  # which has rested since the start
        return train(
            resolved.bundle,
            resolved=resolved,
            reporter=reporter,
            recipe=run_stem(invocation.words),
            command=invocation.line,
            dry_run=invocation.on("dry-run"),
        )


def run_stem(files: Sequence[str]) -> str:
    """What a run without a name is called after: the last file, a recipe without its prefix, a run by its folder."""
    if not files:
        return "train"
    path = PurePath(files[-1].removeprefix("recipe:"))
    return path.parent.name if path.name == "config.toml" and path.parent.name else path.stem


def _reporter(*, logging_steps: int) -> AbstractContextManager[Reporter]:
    if _is_silent():
        from sftctl.engine.run.reporter import Silent  # of many processes, one tells

        return nullcontext(Silent())
    if is_terminal(sys.stdout):
        from sftctl.cli.render import Screen  # rich: only where something is drawn

        return Screen()
    from sftctl.cli.lines import Lines  # the other case

    return Lines(logging_steps=logging_steps)


command = Command("train", USAGE, run)
