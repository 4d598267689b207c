"""`sftctl sweep FILE… --over KEY=VALUE,VALUE`: a run for each combination, and a table of them, the best first.

Every combination is resolved before the first run begins. A run that fails does not stop the others, and the
same command again does only what is missing, since a run directory is found by its configuration. Each run has
a process of its own where the system can fork, so that one which runs out of memory leaves the next one whole.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from sftctl.cli.command import Command
from sftctl.cli.figures import metric
from sftctl.cli.files import FILES
from sftctl.cli.options import Invocation
from sftctl.cli.resolving import apply_environment, resolve_quietly
from sftctl.cli.runner import Ended, run_apart
from sftctl.cli.switches import Example, Switch, Usage
from sftctl.cli.terminal import has_colour, styled, text_table, write
from sftctl.cli.train import train_resolved
from sftctl.config.paths import shorten
from sftctl.config.resolve import Resolved
from sftctl.config.rules import ready
from sftctl.config.sources.options import Assignment
from sftctl.config.sweep import Point, points
from sftctl.errors import ConfigError, Interrupted, Problem

FAILED = 1
SCALES = (
    "note: these losses are not of one scale: compare by another eval.metric_for_best_model, such as\n"
    "      eval_mean_token_accuracy, which needs data.eval_datasets or data.test_split_size"
)
LOWER_IS_BETTER = ("loss", "entropy", "perplexity")

USAGE = Usage(
    summary="Train once for each combination of values, and compare the runs.",
    about=(
        "All combinations are checked before the first run begins. A run that fails does not stop the others. "
        "The same command again does only what is missing."
    ),
    words=FILES,
    switches=(Switch("over", "A key and its values. Again for another key.", value="KEY=VALUE,VALUE", many=True),),
    examples=(
        Example("sftctl sweep run.toml --over optim.learning_rate=1e-5,2e-5,5e-5", "Three learning rates:"),
        Example("sftctl sweep run.toml --over run.seed=1,2,3 --over sft.loss_type=nll,dft", "Two losses, three times:"),
    ),
    takes_leaves=True,
)


def run(invocation: Invocation) -> int:
    grid = _grid(invocation)
    apply_environment(grid[0].resolved)
    ended: list[Ended] = []
    for number, point in enumerate(grid, start=1):
        title = styled(f"run {number} of {len(grid)}", "bold", colour=has_colour(sys.stdout))
        write(f"{title}: {', '.join(f'{path}={value}' for path, value in point.settings.items())}")
        ended.append(run_apart(partial(train_resolved, _named(point, invocation), invocation)))
        if ended[-1].stopped:
            message = f"the sweep was stopped in run {number} of {len(grid)}"
            raise Interrupted(Problem("", message, help="the same command goes on from there"))
        write("")
    _compare(grid, ended, grid[0].resolved.bundle.eval.metric_for_best_model)
    return FAILED if any(each.problem for each in ended) else 0


def _grid(invocation: Invocation) -> tuple[Point, ...]:
    """Every combination, before the first run. Raises ConfigError with what is wrong in any of them."""
    problems = list(invocation.problems)
    if not invocation.texts("over"):
        help = "write --over KEY=VALUE,VALUE, as in --over optim.learning_rate=1e-5,2e-5"
        problems.append(Problem("", "there is nothing to sweep over", help=help))
    grid: tuple[Point, ...] = ()
    try:
        grid = points(invocation.words, invocation.texts("over"), env=os.environ, options=invocation.assignments)
    except ConfigError as error:
        problems = [*error.problems, *problems]
    problems += [problem for point in grid for problem in ready(point.resolved.facts)]
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    return grid


def _named(point: Point, invocation: Invocation) -> Resolved:
    """The point's configuration; where it names its run, with a name of its own: runs of one name are one run."""
    name = point.resolved.bundle.run.run_name
    if name is None:
        return point.resolved
    others = [each for each in invocation.assignments if not _names_run(each)]
    own = [Assignment("--over", "set", None, f"{path}={value}") for path, value in point.settings.items()]
    named = Assignment("--over", "option", "run.run_name", f"{name}-{point.name}")
    return resolve_quietly(invocation._replace(assignments=(*others, *own, named)))


def _names_run(assignment: Assignment) -> bool:
    return "run.run_name" in (assignment.path, (assignment.text or "").partition("=")[0].strip())


def _compare(grid: Sequence[Point], ended: Sequence[Ended], wanted: str) -> None:
    """A table of the runs, the best first, those without a figure last."""
    name = wanted if any(wanted in each.metrics for each in ended) else "loss"
    sign = 1 if any(word in name for word in LOWER_IS_BETTER) else -1

    def order(pair: tuple[Point, Ended]) -> float:
        value = pair[1].metrics.get(name, math.nan)
        return sign * value if isinstance(value, (int, float)) and math.isfinite(value) else math.inf

    rows = []
    for point, each in sorted(zip(grid, ended, strict=True), key=order):
        values = point.settings.values()
        rows.append((*values, _figure(name, each.metrics.get(name)), _outcome(each)))
    head = [*(path.rpartition(".")[2] for path in grid[0].settings), f">{name}", "run"]
    write("\n".join(text_table(head, rows, colour=has_colour(sys.stdout))))
    if name in ("loss", "eval_loss") and len({point.settings.get("sft.loss_type") for point in grid}) > 1:
        write(SCALES)


def _outcome(ended: Ended) -> str:
    return f"failed: {ended.problem}" if ended.problem else shorten(ended.path)


def _figure(name: str, value: Any) -> str:
    return metric(name, value) if isinstance(value, (int, float)) and math.isfinite(value) else "-"


command = Command("sweep", USAGE, run)
