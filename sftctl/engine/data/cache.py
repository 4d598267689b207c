"""Prepared sources on disk, by content: the same bytes in, the same entry; any change, another.

    <cache_dir>/<key>/            one source: the arrays of `store`, its index, the rows left out
    <cache_dir>/<key>.lock        held by the process that makes it

The key names the source's bytes and how it is read, the tokenizer's bytes, the chat template, every setting that
decides a token or a mask, the code of this package that does it, and the versions of the libraries underneath.

Properties: an entry is complete or absent (made aside, renamed). Two processes that want the same one make it
once: the second waits for the lock, which the system takes back from a process that dies. A damaged entry is
made again: files that changed since they were last checked (by size, times and inode) are read whole and held
against their digests.

Trade-off: nothing is ever evicted; a folder can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

from sftctl.engine.data.digests import RECENT_NS, digest_of_text, identity_of, write_atomically
from sftctl.engine.data.store import INDEX, Store, check_store, read_store
from sftctl.errors import DataError, Problem

try:
    import fcntl
except ImportError:  # Windows: entries are still whole or absent, but may be made twice
    fcntl = None  # type: ignore[assignment]  # a module, where there is one

CHECKED = "checked.json"
LIBRARIES = ("tokenizers", "jinja2", "numpy")


def default_cache_dir() -> Path:
    """The user's cache folder: $XDG_CACHE_HOME/sftctl, or ~/.cache/sftctl."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sftctl" / "data"


def entry(cache_dir: Path, key: str, make: Callable[[Path], Store]) -> tuple[Store, bool]:
    """The entry of this key, and whether it was there. `make` fills an empty folder where it was not.

    Raises DataError where the folder cannot be written.
    """
    folder = cache_dir / key
    found = _load(folder)
    if found is not None:
        return found, True
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _locked(cache_dir / f"{key}.lock"):
            found = _load(folder)
            if found is not None:
                return found, True
            return _make(folder, make), False
    except OSError as error:
        raise DataError(
            Problem(
                "data.cache_dir",
                f"prepared data cannot be written to {cache_dir}: {error.strerror or error}",
                help="free some space, or name another folder with data.cache_dir",
            )
        ) from error


def key_of(*parts: str) -> str:
    """The name of an entry: of these parts, this code, and the libraries under it."""
    versions = [f"{name} {metadata.version(name)}" for name in LIBRARIES]
    return digest_of_text(_digest_of_code(), *versions, *parts)


@cache
def _digest_of_code() -> str:
    """The bytes of every module of this package, so that no version number can be forgotten."""
    return digest_of_text(*(path.read_text() for path in sorted(Path(__file__).parent.glob("*.py"))))


def _make(folder: Path, make: Callable[[Path], Store]) -> Store:
    for left in folder.parent.glob(f"{folder.name}.*.tmp"):  # of a process that died: the lock is ours
        shutil.rmtree(left, ignore_errors=True)
    aside = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        make(aside)
        _remember(aside)
        if folder.is_symlink() or folder.is_file():
            folder.unlink()
        elif folder.exists():
            shutil.rmtree(folder)
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return read_store(folder)


def _load(folder: Path) -> Store | None:
    """A whole entry, or None; reads it through where it may have changed since it was last checked."""
    if not (folder / INDEX).exists():
        return None
    try:
        if not _unchanged(folder):
            check_store(folder)
            with contextlib.suppress(OSError):  # a cache that may only be read is checked at each start
                _remember(folder)
        return read_store(folder)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _unchanged(folder: Path) -> bool:
    """Whether every file is the one that was checked, and was old enough then that a later write would show."""
    try:
        known = json.loads((folder / CHECKED).read_text())
        checked, moment = known["files"], known["time"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    files = _identities(folder)
    newest = max((identity[2] for identity in files.values()), default=0)
    return bool(checked == files and isinstance(moment, int) and newest < moment - RECENT_NS)


def _remember(folder: Path) -> None:
    content = {"files": _identities(folder), "time": time.time_ns()}
    write_atomically(folder / CHECKED, json.dumps(content).encode())


def _identities(folder: Path) -> dict[str, list[int]]:
    return {path.name: identity_of(path.stat()) for path in sorted(folder.iterdir()) if path.name != CHECKED}


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file's lock; wait for whoever holds it now."""
    with path.open("w") as stream:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(stream, fcntl.LOCK_EX)
        yield
