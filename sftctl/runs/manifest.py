"""A checkpoint as a folder of files: complete or absent, proven by its manifest. Knows nothing of tensors.

    checkpoints/
      step-40/            renamed into place when everything in it was on the device
        manifest.json     every file with its size and hash; written last; carries its own digest
        …
      .step-50.writing    one that was being written when the process died

`verify` reads every byte before anybody interprets one: a flipped bit, a cut or a missing file is found by name.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftctl.errors import Problem, RunError
from sftctl.runs.files import fsync_folder, plain, read_json, refusals, write_atomically
from sftctl.runs.hashing import hash_file

MANIFEST = "manifest.json"
STEP_PREFIX = "step-"
WRITING_SUFFIX = ".writing"
REMOVING_SUFFIX = ".removing"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size and digest (`sftctl.runs.hashing`) of one file."""

    num_bytes: int
    xxh3_128: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint holds. `content` is the writer's: step, meta, settings."""

    files: Mapping[str, FileRecord]
    content: Mapping[str, Any]

    @property
    def step(self) -> int:
        step = self.content["step"]
        assert isinstance(step, int)
        return step


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose files were verified."""

    path: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        return self.manifest.step

    @property
    def meta(self) -> Mapping[str, Any]:
        """What the driver saved with it: progress, counters, the best metric so far."""
        meta: Mapping[str, Any] = self.manifest.content["meta"]
        return meta


def step_folder(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"{STEP_PREFIX}{step}"


def writing_folder(checkpoints: Path, step: int) -> Path:
    return checkpoints / f".{STEP_PREFIX}{step}{WRITING_SUFFIX}"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    body = {
        "format": FORMAT,
        **plain(manifest.content),
        "files": {name: {"num_bytes": f.num_bytes, "xxh3_128": f.xxh3_128} for name, f in manifest.files.items()},
    }
    text = json.dumps({**body, "digest": _digest(body)}, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / MANIFEST, text + "\n")


def _digest(body: Mapping[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of `folder`, its own digest checked. Raises RunError, saying what is wrong with it."""
    try:
        body = read_json(folder / MANIFEST)
    except RunError as error:
        raise damaged(folder, error.problems[0].message) from error
    if body is None:
        raise damaged(folder, f"it has no {MANIFEST}, which is written last")
    digest = body.pop("digest", None)
    if digest != _digest(body):
        raise damaged(folder, f"{MANIFEST} is not what was written")
    with damage(folder, MANIFEST):
        if body.pop("format") != FORMAT:
            raise damaged(folder, "it was written by another version of sftctl")
        files = {name: FileRecord(**record) for name, record in body.pop("files").items()}
        return Manifest(files, body)


def verify(folder: Path, *, only: Callable[[int], bool] = lambda index: True) -> Manifest:
    """Check every file of a checkpoint against its manifest. Raises RunError naming the first that is wrong.

    `only` picks files by index, so that ranks can share the reading.
    """
    manifest = read_manifest(folder)
    if folder.name.startswith(STEP_PREFIX) and folder.name != step_folder(folder.parent, manifest.step).name:
        raise damaged(folder, f"it is of step {manifest.step}")
    for index, (name, record) in enumerate(sorted(manifest.files.items())):
        if only(index):
            _verify_file(folder, name, record)
    return manifest


def _verify_file(folder: Path, name: str, record: FileRecord) -> None:
    path = folder / name
    if os.sep in name or name.startswith(".") or path.is_symlink():
        raise damaged(folder, f"{name!r} is not the name of a file of a checkpoint")
    if not path.is_file():
        raise damaged(folder, f"{name} is missing")
    with refusals(path, "read"):
        size = path.stat().st_size
        if size != record.num_bytes:
            raise damaged(folder, f"{name} has {size} bytes, not {record.num_bytes}")
        if hash_file(path) != record.xxh3_128:
            raise damaged(folder, f"{name} is not what was written: its hash differs")


def damaged(folder: Path, reason: str) -> RunError:
    return RunError(
        Problem(
            "checkpoint.resume",
            f"the checkpoint {folder} is damaged: {reason}",
            help="remove it to go on from an older one, or set checkpoint.resume to the one you want",
        )
    )


@contextlib.contextmanager
def damage(folder: Path, name: str) -> Iterator[None]:
    """While what `name` holds is taken apart: a shape that no writer of ours gives is damage, and no bug."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = f"{name} does not hold what it should ({type(error).__name__}: {error})"
        raise damaged(folder, reason) from error


# ---------------------------------------------------------------------- the folder of checkpoints


def list_steps(checkpoints: Path) -> list[int]:
    """The steps that have a folder under its final name, oldest first; whether they are whole is `verify`'s to say."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        names = [entry.name for entry in os.scandir(checkpoints) if entry.is_dir(follow_symlinks=False)]
        steps = [name.removeprefix(STEP_PREFIX) for name in names if name.startswith(STEP_PREFIX)]
        return sorted(int(step) for step in steps if step.isdecimal())
    return []


def leftovers(checkpoints: Path) -> list[Path]:
    """What an older crash left half written or half removed."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(
            path
            for path in checkpoints.iterdir()
            if path.name.startswith(f".{STEP_PREFIX}") and path.suffix in (WRITING_SUFFIX, REMOVING_SUFFIX)
        )
    return []


def publish(checkpoints: Path, step: int) -> Path:
    """Give a folder that is written its final name. One that has the name already, a damaged one, makes way."""
    writing, final = writing_folder(checkpoints, step), step_folder(checkpoints, step)
    with refusals(final, "write"):
        fsync_folder(writing)
        if final.exists():
            remove(final)
        os.rename(writing, final)
        fsync_folder(checkpoints)
    return final


def remove(folder: Path) -> None:
    """Remove a checkpoint: first its name, in one rename, so that no half of it is ever found."""
    removing = folder.with_name(f".{folder.name}{REMOVING_SUFFIX}")
    with refusals(folder, "remove"):
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "not a folder")
        shutil.rmtree(removing, ignore_errors=True)
        os.rename(folder, removing)
        shutil.rmtree(removing)


def superfluous(steps: list[int], *, limit: int | None, keep: frozenset[int]) -> list[int]:
    """Of `steps`, oldest first, those that a limit of `limit` lets go: never the newest, never one in `keep`.

    Steps 10, 20, 30, 40 at limit 2: 10 and 20 go; with 10 in keep: 20 and 30.
    """
    if limit is None:
        return []
    others = [step for step in sorted(steps)[:-1] if step not in keep]
    room = max(0, limit - 1 - len(keep & frozenset(sorted(steps)[:-1])))
    return others[: len(others) - room] if room < len(others) else []
