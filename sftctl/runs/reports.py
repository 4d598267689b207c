"""What `sftctl runs list` and `sftctl runs show RUN` tell: read from the run directory alone, without torch.

A run that says "running" and whose lock nobody holds was killed: it is reported as interrupted. On a file
system without locks that cannot be told, and the state is reported as it was written.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftctl.errors import Problem, RunError, SftctlError
from sftctl.runs.directory import LOCK, RunDirectory, attach, run_directories
from sftctl.runs.lock import is_held
from sftctl.runs.manifest import MANIFEST, list_steps, step_folder
from sftctl.runs.metrics import last_record, read_metrics
from sftctl.runs.state import RunState


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A line of `runs list`. `problem` is why a directory could not be read; the rest is then empty."""

    name: str
    path: Path
    phase: str
    step: int = 0
    total_steps: int | None = None
    loss: float | None = None
    updated: str = ""
    num_bytes: int = 0
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class RunReport:
    """What `runs show` tells."""

    summary: RunSummary
    state: RunState
    checkpoints: tuple[tuple[int, int], ...]
    """(step, bytes) of each complete checkpoint, oldest first."""
    last_metrics: Mapping[str, Any]
    last_evaluation: Mapping[str, Any]
    first_loss: float | None
    has_final: bool
    how_to_resume: str | None


def phase_of(path: Path, state: RunState) -> str:
    """The phase a run is really in: one that died without a word is interrupted."""
    if state.phase in ("preparing", "running") and not is_held(path / LOCK):
        return "interrupted"
    return state.phase


def list_runs(output_dir: Path) -> list[RunSummary]:
    """A summary of each run directory in `output_dir`, the one written last first."""
    summaries = [_summarise(path) for path in run_directories(output_dir)]
    return sorted(summaries, key=lambda summary: summary.updated, reverse=True)


def _summarise(path: Path) -> RunSummary:
    try:
        run = attach(path)
    except SftctlError as error:
        return RunSummary(path.name, path, "damaged", problem=str(error))
    state = run.state
    last = last_record(run.metrics, having="loss") or {}  # nearer to the end than the state
    return RunSummary(
        name=path.name,
        path=path,
        phase=phase_of(path, state),
        step=max(state.step, last.get("step", 0)),
        total_steps=state.total_steps,
        loss=last.get("loss"),
        updated=state.updated,
        num_bytes=disk_bytes(path),
    )


def show_run(path: Path) -> RunReport:
    """All there is to tell about one run. Raises RunError where `path` holds none."""
    if not path.is_dir():
        raise RunError(Problem("", f"there is no run {path}", help="see 'sftctl runs list'"))
    run = attach(path)
    summary = _summarise(path)
    last: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}
    first_loss: float | None = None
    for record in read_metrics(run.metrics):
        if isinstance(record.get("loss"), float):
            last = record
            first_loss = record["loss"] if first_loss is None else first_loss
        if any(name.startswith("eval_") for name in record):
            evaluation = record
    return RunReport(
        summary=summary,
        state=run.state,
        checkpoints=_checkpoints(run),
        last_metrics=last,
        last_evaluation=evaluation,
        first_loss=first_loss,
        has_final=run.final.is_dir(),
        how_to_resume=_how_to_resume(run, summary.phase),
    )


def _checkpoints(run: RunDirectory) -> tuple[tuple[int, int], ...]:
    """Those with a manifest, which is written last; their hashes are checked when one is loaded."""
    folders = [(step, step_folder(run.checkpoints, step)) for step in list_steps(run.checkpoints)]
    return tuple((step, disk_bytes(folder)) for step, folder in folders if (folder / MANIFEST).is_file())


def _how_to_resume(run: RunDirectory, phase: str) -> str | None:
    if phase not in ("interrupted", "failed"):
        return None
    if not run.config.is_file():
        return "the run stopped before it had begun: give its command again"
    return shlex.join(["sftctl", "train", str(run.config), "--resume", str(run.path)])


def disk_bytes(folder: Path) -> int:
    """What the files under `folder` take on disk; those that vanish meanwhile are not counted."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_blocks * 512
    return total
