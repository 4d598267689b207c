"""`sftctl runs show RUN`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sftctl.cli.command import Command
from sftctl.cli.figures import metric, size
from sftctl.cli.options import Invocation
from sftctl.cli.switches import Example, Switch, Usage, Words
from sftctl.cli.terminal import has_colour, styled, write
from sftctl.config.leaves import leaves

if TYPE_CHECKING:
    from sftctl.runs.reports import RunReport

USAGE = Usage(
    summary="Tell how far a run is, its losses, its disk use, and how it goes on.",
    words=Words("RUN", "A run directory, or the name of one in the folder 'runs'.", least=1, most=1),
    switches=(Switch("format", "How it is written. [table]", choices=("table", "json")),),
    examples=(Example("sftctl runs show runs/quickstart-1", "One run:"),),
)


def run(invocation: Invocation) -> None:
    from sftctl.runs.reports import show_run  # which the help does not need

    path = Path(invocation.words[0])
    if not path.is_dir() and len(path.parts) == 1:
        path = Path(leaves()["run.output_dir"].default) / path
    report = show_run(path)
    if invocation.text("format", "table") == "json":
        write(json.dumps(asdict(report), indent=2, default=str))
        return
    colour = has_colour(sys.stdout)
    rows = list(_rows(report))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        write(f"{styled(name.ljust(width), 'bold', colour=colour)}  {value}".rstrip())


def _rows(report: RunReport) -> Iterator[tuple[str, str]]:
    summary, state = report.summary, report.state
    yield "run", str(summary.path)
    yield "state", summary.phase + (f": {state.message}" if state.message else "")
    total = f" of {summary.total_steps}" if summary.total_steps is not None else ""
    yield "step", f"{summary.step}{total}" + (f", resumed {state.resumes} times" if state.resumes else "")
    if summary.loss is not None and report.first_loss is not None:
        yield "loss", f"{report.first_loss:.4f} at first, {summary.loss:.4f} now"
    for name, value in report.last_evaluation.items():
        if name.startswith("eval_") and isinstance(value, (int, float)):
            yield name, metric(name, value)
    for step, num_bytes in report.checkpoints:
        yield f"checkpoint {step}", size(num_bytes)
    yield "final model", f"{summary.path}/final" if report.has_final else "none"
    yield "disk", size(summary.num_bytes)
    yield "started, written", f"{state.started}, {state.updated}, on {state.host}"
    if report.how_to_resume:
        yield "go on", report.how_to_resume


command = Command("show", USAGE, run)
