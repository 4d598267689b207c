"""What a run says about itself: running, interrupted, finished or failed, and how far it is.

`state.json` is replaced whole at each change. It cannot be trusted to say that a run is alive, since nobody
writes it after `kill -9`: who reads it asks the lock too (`sftctl.runs.reports`).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args

from sftctl.errors import Problem, RunError
from sftctl.runs.files import read_json, write_json
from sftctl.runs.secrets import redact_text

Phase = Literal["preparing", "running", "interrupted", "finished", "failed"]


@dataclass(frozen=True, slots=True)
class RunState:
    """`started` and `updated` are ISO 8601 times in UTC, for people: nothing is decided by comparing them, since a
    clock may jump back. `number` counts the runs of one configuration in one folder."""

    phase: Phase
    recipe: str
    digest: str
    pid: int
    host: str
    started: str
    updated: str
    number: int = 1
    step: int = 0
    total_steps: int | None = None
    resumes: int = 0
    message: str | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def new_state(*, recipe: str, digest: str, number: int = 1) -> RunState:
    now = utc_now()
    return RunState("preparing", recipe, digest, os.getpid(), socket.gethostname(), now, now, number)


def changed(state: RunState, **changes: Any) -> RunState:
    """A copy with `changes`, stamped now by this process; what a message says is cleared of secrets."""
    if changes.get("message"):
        changes["message"] = redact_text(changes["message"])
    return replace(state, pid=os.getpid(), host=socket.gethostname(), updated=utc_now(), **changes)


def write_state(path: Path, state: RunState) -> None:
    write_json(path, asdict(state))


def read_state(path: Path) -> RunState | None:
    """The state in `path`; None where there is none. RunError where it is damaged."""
    content = read_json(path)
    if content is None:
        return None
    try:
        state = RunState(**content)
    except TypeError as error:
        raise _damaged(path, str(error)) from error
    if state.phase not in get_args(Phase):
        raise _damaged(path, f"no phase {state.phase!r}")
    for name, kind in _KINDS.items():
        value = content.get(name)
        if name in content and (not isinstance(value, kind) or isinstance(value, bool)):
            raise _damaged(path, f"{name} is {value!r}")
    return state


_KINDS: dict[str, type | UnionType] = {
    **dict.fromkeys(("recipe", "digest", "host", "started", "updated"), str),
    **dict.fromkeys(("pid", "number", "step", "resumes"), int),
    "total_steps": int | None,
    "message": str | None,
    "metrics": dict,
}


def _damaged(path: Path, reason: str) -> RunError:
    help_text = "restore it, set run.overwrite to replace the run, or set another run.run_name"
    return RunError(Problem("", f"{path} is damaged: {reason}", help=help_text))
