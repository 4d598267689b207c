"""The run directory: the whole truth of a run, and the one module that knows its file names.

A directory is claimed before any slow work, so that a folder that cannot be written is found in a second and
not after an hour of preparing data; it is given back, leaving nothing, if the run never began. One process
writes in it (`sftctl.runs.lock`). An existing directory is gone on with when it holds the same run, replaced
when that was asked for, and otherwise refused: nothing of another run is ever overwritten.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from sftctl.errors import Interrupted, Problem, RunError, SftctlError
from sftctl.runs.files import fsync_folder, read_json, refusals
from sftctl.runs.identity import Difference, differences, problems
from sftctl.runs.lock import Lock, in_use
from sftctl.runs.secrets import redact_tree
from sftctl.runs.state import Phase, RunState, changed, new_state, read_state, write_state

STATE = "state.json"
ORIGINS = "origins.json"
LOCK = ".lock"
REPLACED = ".replaced"
PROGRESS_SECONDS = 2.0

Claim = Literal["new", "resume", "finished"]
"""What a claimed directory is: empty, a run to go on with, or one that is done."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a run is known by: its recipe's name, the digest of its configuration, and the settings themselves
    as nested plain values."""

    recipe: str
    digest: str
    settings: Mapping[str, Any]


class RunDirectory:
    """Names of all files of a run, the lock on it, and its state. Made by `claim` or `attach`."""

    def __init__(
        self, path: Path, state: RunState, *, claim: Claim, lock: Lock | None, made: Sequence[Path] = ()
    ) -> None:
        self.path = path
        self.state = state
        self.claim = claim
        self._lock = lock
        self._made = tuple(made)
        self._written = time.monotonic()
        self.config = path / "config.toml"
        self.origins = path / ORIGINS
        self.environment = path / "environment.json"
        self.data = path / "data.json"
        self.dropped = path / "dropped.jsonl"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.final = path / "final"
        self.trackers = path / "trackers"

    @property
    def locked(self) -> bool:
        """False on ranks other than the main one, and on file systems without locks."""
        return self._lock is not None and self._lock.supported

    def update(self, phase: Phase, **changes: Any) -> None:
        """Write the state: `step`, `total_steps`, `metrics`, `message`. Does nothing on other ranks.

        A step further within one phase is written every few seconds at most: two flushes of the device take as
        long as a step of a small model.
        """
        now = time.monotonic()
        is_progress = phase == self.state.phase and changes.keys() == {"step"}
        self.state = changed(self.state, phase=phase, **changes)
        if self._lock is None or (is_progress and now - self._written < PROGRESS_SECONDS):
            return
        write_state(self.path / STATE, self.state)
        self._written = now

    def begin(self, *, total_steps: int, step: int = 0) -> None:
        """The first step is next: from here on the directory is kept, and one that it replaces is gone."""
        resumes = self.state.resumes + (1 if self.claim == "resume" else 0)
        self.update("running", step=step, total_steps=total_steps, resumes=resumes, message=None)
        if self._lock is not None:
            shutil.rmtree(self.path / REPLACED, ignore_errors=True)

    def close(self) -> None:
        """Give the lock back. A new directory whose run never began is undone: removed, or as it was before."""
        if self._lock is None:
            return
        if self.claim == "new" and self.state.phase == "preparing":
            _undo(self.path, self._made)
        self._lock.release()
        self._lock = None

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Record how the run ended, unless it never began; then close."""
        try:
            if error is not None and self.state.phase == "running":
                stopped = isinstance(error, Interrupted | KeyboardInterrupt)
                with contextlib.suppress(SftctlError):  # a full disk must not hide the first error
                    self.update("interrupted" if stopped else "failed", message=_what_happened(error))
        finally:
            self.close()


def _what_happened(error: BaseException) -> str:
    """What is wrong, without what to do about it: that is for whoever was there."""
    if isinstance(error, SftctlError):
        return "; ".join(problem.message for problem in error.problems)
    if isinstance(error, KeyboardInterrupt):
        return "left at once, without another checkpoint"
    return str(error) or type(error).__name__


# ---------------------------------------------------------------------- claiming


def claim(
    output_dir: Path,
    identity: Identity,
    *,
    run_name: str | None = None,
    resume: str = "auto",
    overwrite: bool = False,
    now: datetime | None = None,
) -> RunDirectory:
    """Lock the directory of this run, made if it is not there. Main rank only; see `attach`.

    `resume`: a run directory is gone on with; a single checkpoint, wherever it is, starts another run, since the
    run it came from may be further. "auto" without `run_name` looks for the newest run with this digest.
    Raises RunError: cannot be written, in use, another run's, or behind a link.
    """
    from_path = Path(resume) if resume not in ("auto", "never") else None
    if from_path is not None and (from_path / STATE).is_file():
        path: Path | None = from_path
    elif run_name is not None:
        path = output_dir / _checked_name(run_name)
        _refuse_link(path)
    else:
        path = newest_same(output_dir, identity.digest) if resume == "auto" and not overwrite else None
    if path is None:
        path = _unused(output_dir, default_name(identity, now or datetime.now()))
    return _claim_at(path, identity, resume=path == from_path or resume == "auto", overwrite=overwrite)


def attach(path: Path, *, claim: Claim = "resume") -> RunDirectory:
    """The directory that the main rank has claimed, for other ranks and for readers: no lock, no writes."""
    state = read_state(path / STATE)
    if state is None:
        raise RunError(Problem("", f"{path} is not a run directory: it has no {STATE}", help="see 'sftctl runs list'"))
    return RunDirectory(path, state, claim=claim, lock=None)


def default_name(identity: Identity, now: datetime) -> str:
    """Recipe, local time, digest: "quickstart-20261124-071805-3fa9c1"."""
    recipe = re.sub(r"[^A-Za-z0-9._-]+", "-", identity.recipe).strip("-.")[:100] or "run"
    return f"{recipe}-{now:%Y%m%d-%H%M%S}-{identity.digest[:6]}"


def newest_same(output_dir: Path, digest: str) -> Path | None:
    """The directory, last started, whose run has this digest of its configuration."""
    found = _same(output_dir, digest)
    return output_dir / max(found)[1] if found else None


def _same(output_dir: Path, digest: str) -> list[tuple[int, str]]:
    """(number, name) of the runs with this digest."""
    found: list[tuple[int, str]] = []
    for path in run_directories(output_dir):
        state = _state_if_whole(path)  # a damaged one is not ours to judge here
        if state is not None and state.digest == digest:
            found.append((state.number, path.name))
    return found


def run_directories(output_dir: Path) -> list[Path]:
    """The folders in `output_dir` that hold a run, by name."""
    with contextlib.suppress(OSError):
        return sorted(
            path for path in output_dir.iterdir() if not path.name.startswith(".") and (path / STATE).is_file()
        )
    return []


def _checked_name(name: str) -> str:
    """A run's name is one folder inside output_dir: no path in a recipe leads anywhere else."""
    reason = None
    if name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        reason = "is not the name of one folder inside run.output_dir"
    elif name.startswith("."):
        reason = "starts with a dot, which hides it"
    elif any(ord(character) < 32 for character in name):
        reason = "holds a control character"
    elif len(os.fsencode(name)) > 200:
        reason = "is longer than 200 bytes"
    if reason:
        raise RunError(Problem("run.run_name", f"{name!r} {reason}", help="set a plain name, such as 'gsm8k-lora'"))
    return name


def _unused(output_dir: Path, name: str) -> Path:
    """`name`, or `name-2`, … where a run was started in the same second."""
    for number in range(1, 1000):
        path = output_dir / (name if number == 1 else f"{name}-{number}")
        if not path.exists():
            return path
    raise RunError(Problem("run.output_dir", f"no free name for {name} in {output_dir}", help="set run.run_name"))


def _claim_at(path: Path, identity: Identity, *, resume: bool, overwrite: bool) -> RunDirectory:
    made = _make_folder(path)
    with refusals(path, "read"):
        _refuse_links(path)
        ours = bool(made) or _is_ours(path)
    if not ours:
        raise RunError(
            Problem(
                "run.run_name",
                f"{path} exists and is not a run directory",
                help="nothing in it was touched; set another run.run_name or run.output_dir",
            )
        )
    lock = Lock(path / LOCK)
    taken = False
    try:
        taken = lock.acquire()
        if not taken:
            raise in_use(path, _holder(path))
        return _claim_locked(path, identity, lock, made=made, resume=resume, overwrite=overwrite)
    except BaseException:
        if taken or not (path / LOCK).exists():  # else the folder is somebody else's by now
            if made:
                _undo(path, made)
            lock.release()
        raise


def _claim_locked(
    path: Path, identity: Identity, lock: Lock, *, made: Sequence[Path], resume: bool, overwrite: bool
) -> RunDirectory:
    _put_back_half(path)
    state = _state_if_whole(path) if overwrite else read_state(path / STATE)
    if state is None or overwrite:
        if overwrite and not made:
            _set_aside(path)
        number = 1 + max((number for number, _ in _same(path.parent, identity.digest)), default=0)
        state = new_state(recipe=identity.recipe, digest=identity.digest, number=number)
        write_state(path / STATE, state)
        return RunDirectory(path, state, claim="new", lock=lock, made=made)
    if not resume:
        raise RunError(
            Problem(
                "run.run_name",
                f"{path} holds a run already ({state.phase}, step {state.step})",
                help='set another run.run_name, run.overwrite to replace it, or checkpoint.resume = "auto"',
            )
        )
    found = _other_settings(path, identity)
    if found:
        raise RunError(*problems(found, where=str(path)))
    return RunDirectory(path, state, claim="finished" if state.phase == "finished" else "resume", lock=lock)


def _other_settings(path: Path, identity: Identity) -> tuple[Difference, ...]:
    """What of the settings in origins.json is not as now. A run that stopped before writing it has none."""
    origins = read_json(path / ORIGINS)
    if origins is None:
        return ()
    before = {leaf: entry["value"] for leaf, entry in origins.items() if isinstance(entry, dict) and "value" in entry}
    return differences(before, redact_tree(identity.settings))


def _refuse_links(path: Path) -> None:
    """Whoever made this directory must not decide, by a link in it, which other files the run writes or removes."""
    for entry in path.iterdir():
        _refuse_link(entry)


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise RunError(
            Problem(
                "run.run_name",
                f"{path} is a symbolic link, to {os.readlink(path)!r}, and a run writes nothing through one",
                help="remove it, or set another run.run_name; a run goes to another disk by run.output_dir",
            )
        )


def _state_if_whole(path: Path) -> RunState | None:
    with contextlib.suppress(RunError):
        return read_state(path / STATE)
    return None


def _is_ours(path: Path) -> bool:
    """Whether a folder that was there may be written: it holds a run, or one cut off at its start, or nothing."""
    names = {entry.name for entry in path.iterdir()} - {LOCK, REPLACED}
    return not names or STATE in names or all(name.startswith(f".{STATE}.") for name in names)


def _holder(path: Path) -> str:
    state = _state_if_whole(path)
    return f"process {state.pid} on {state.host}" if state is not None else "another process"


def _make_folder(path: Path) -> list[Path]:
    """Make `path` and its parents; return what was made, innermost first, and nothing if `path` was there."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    made: list[Path] = []
    with refusals(path, "make"):
        try:
            for folder in reversed(missing):
                folder.mkdir()
                made.insert(0, folder)
            if not path.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "not a directory")
            if made:
                fsync_folder(path.parent)
        except OSError:
            _remove_empty(made)
            raise
    return made


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _entries(path: Path) -> list[Path]:
    return [entry for entry in path.iterdir() if entry.name not in (LOCK, REPLACED)]


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()


def _set_aside(path: Path) -> None:
    """Move a run that is to be replaced into `.replaced`, whence it comes back if the new one never begins. Its state
    moves last: where that is in there, the run is, whole, and what lies beside it is of an earlier attempt."""
    replaced = path / REPLACED
    with refusals(path, "replace"):
        is_done = (replaced / STATE).exists()
        replaced.mkdir(exist_ok=True)
        for entry in sorted(_entries(path), key=lambda entry: entry.name == STATE):
            if is_done:
                _remove(entry)
            else:
                entry.rename(replaced / entry.name)


def _put_back_half(path: Path) -> None:
    """A process died while it set a run aside: the run is whole again."""
    replaced = path / REPLACED
    if replaced.is_dir() and not (replaced / STATE).exists():
        with refusals(path, "restore"):
            for entry in replaced.iterdir():
                entry.rename(path / entry.name)
            replaced.rmdir()


def _undo(path: Path, made: Sequence[Path]) -> None:
    """Leave `path` as it was before it was claimed, as far as the file system allows."""
    with contextlib.suppress(OSError):
        for entry in _entries(path):
            _remove(entry)
        replaced = path / REPLACED
        if replaced.is_dir():
            for entry in replaced.iterdir():
                entry.rename(path / entry.name)
            replaced.rmdir()
        else:
            (path / LOCK).unlink(missing_ok=True)
    _remove_empty(made)


__all__ = ["Claim", "Identity", "RunDirectory", "attach", "claim", "default_name", "newest_same", "run_directories"]
