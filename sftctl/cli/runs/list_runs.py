"""`sftctl runs list [FOLDER]`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sftctl.cli.command import Command
from sftctl.cli.figures import size
from sftctl.cli.options import Invocation
from sftctl.cli.switches import Example, Switch, Usage, Words
from sftctl.cli.terminal import has_colour, text_table, write
from sftctl.config.leaves import leaves
from sftctl.runs.state import utc_now

if TYPE_CHECKING:
    from sftctl.runs.reports import RunSummary

USAGE = Usage(
    summary="List the runs in a folder, the one written last first.",
    words=Words("FOLDER", "The folder that holds the run directories. [runs]", most=1),
    switches=(Switch("format", "How it is written. [table]", choices=("table", "json")),),
    examples=(Example("sftctl runs list", "The runs of this folder:"),),
)


def run(invocation: Invocation) -> None:
    from sftctl.runs.reports import list_runs  # which the help does not need

    folder = Path(invocation.words[0] if invocation.words else leaves()["run.output_dir"].default)
    summaries = list_runs(folder)
    if invocation.text("format", "table") == "json":
        write(json.dumps([asdict(each) | {"path": str(each.path)} for each in summaries], indent=2))
    elif not summaries:
        write(f"no runs in {folder}")
    else:
        head = ("run", "state", ">step", ">loss", ">disk", "written")
        write("\n".join(text_table(head, [_row(each) for each in summaries], colour=has_colour(sys.stdout))))
        for each in summaries:
            if each.problem:
                write(f"\n{each.name}: {each.problem}")


def _row(summary: RunSummary) -> tuple[str, ...]:
    total = f"/{summary.total_steps}" if summary.total_steps is not None else ""
    loss = f"{summary.loss:.4f}" if summary.loss is not None else ""
    return (
        summary.name,
        summary.phase,
        f"{summary.step}{total}",
        loss,
        size(summary.num_bytes),
        _when(summary.updated),
    )


def _when(time: str) -> str:
    """Of a time in UTC what fits beside the rest at 80 columns: "11-24 12:34", or "2025-11-24" of another year."""
    date, _, clock = time.partition("T")
    return f"{date[5:]} {clock[:5]}" if date[:4] == utc_now()[:4] else date


command = Command("list", USAGE, run)
