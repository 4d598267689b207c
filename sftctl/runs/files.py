"""Writing to disk so that a reader finds the old file or the new one, never half of one.

A file is written under a temporary name in its own folder, flushed to the device, renamed over its final name,
and the folder is flushed too: after a crash or a power cut the name leads to whole content. The price is two
fsync calls a file (1-10 ms each on a local disk), so this is for the few small files of a run; metrics are
appended (`sftctl.runs.metrics`) and checkpoints are folders (`sftctl.engine.saving.checkpoint`).

What the operating system refuses becomes a RunError that names the file, the reason and a way out.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from sftctl.errors import Problem, RunError

TEMPORARY_SUFFIX = ".tmp"

_REASONS: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("the disk is full", "free some space, or set run.output_dir to another disk"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or set run.output_dir to another disk"),
    errno.EACCES: ("permission denied", "change its permissions, or set run.output_dir to a folder of yours"),
    errno.EPERM: ("not permitted", "change its permissions, or set run.output_dir to a folder of yours"),
    errno.EROFS: ("the file system is read-only", "set run.output_dir to a folder that can be written"),
    errno.ENOTDIR: ("a file is in the way where a folder is needed", "move that file, or set run.output_dir"),
    errno.EEXIST: ("something else has that name", "move it, or set run.output_dir or run.run_name"),
    errno.EISDIR: ("a folder is in the way where a file is needed", "move that folder, or set run.run_name"),
    errno.ENAMETOOLONG: ("the name is too long for the file system", "set a shorter run.run_name"),
    errno.EIO: ("the device reports an input/output error", "check the disk, or set run.output_dir to another one"),
}


def refusal(error: OSError, path: Path, doing: str) -> RunError:
    """The RunError for what the operating system said: "cannot write runs/a/state.json: the disk is full"."""
    number = error.errno or 0
    reason, help_text = _REASONS.get(number, (error.strerror or str(error), "set run.output_dir to another folder"))
    if number in (errno.ENOSPC, errno.EDQUOT):
        reason += _free_space(path)
    return RunError(Problem("", f"cannot {doing} {path}: {reason}", help=help_text))


def _free_space(path: Path) -> str:
    for folder in (path, *path.parents):
        with contextlib.suppress(OSError):
            return f" ({human_bytes(shutil.disk_usage(folder).free)} free)"
    return ""


def human_bytes(count: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


@contextlib.contextmanager
def refusals(path: Path, doing: str) -> Iterator[None]:
    """Turn an OSError of the block into a RunError about `path`."""
    try:
        yield
    except OSError as error:
        raise refusal(error, path, doing) from error


def fsync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems without it (some network mounts)
            raise
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content`, whole or not at all. Raises RunError; leaves nothing behind when it does."""
    data = content.encode() if isinstance(content, str) else content
    write_stream_atomically(path, lambda file: file.write(data))


def write_stream_atomically(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
    """The same for content that `fill` writes into an open binary file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        with open(temporary, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except OSError as error:
        raise refusal(error, path, "write") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line, streamed: a ledger of a million rows needs no list of them."""

    def fill(file: IO[bytes]) -> None:
        for row in rows:
            file.write(json_line(row))

    write_stream_atomically(path, fill)


def json_line(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(plain(record), ensure_ascii=False, allow_nan=False) + "\n").encode()


def plain(value: Any) -> Any:
    """`value` in JSON's own types. Floats keep every bit (their shortest exact decimal form); what JSON has no
    number for becomes "NaN", "Infinity" or "-Infinity", the strings of Protocol Buffers' JSON mapping."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else _NOT_FINITE[str(float(value))]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy scalars and arrays, without importing numpy
        return plain(value.tolist())
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no JSON form")


_NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
_FROM_TEXT = {text: float(number) for number, text in _NOT_FINITE.items()}


def number_from_json(value: Any) -> Any:
    """The way back for the three numbers that JSON lacks."""
    return _FROM_TEXT.get(value, value) if isinstance(value, str) else value


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in `path`; None where there is no such file. A damaged file is a RunError, never a traceback."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise refusal(error, path, "read") from error
    except ValueError as error:
        raise RunError(Problem("", f"{path} is damaged: {error}", help="restore it, or start another run")) from error
    if not isinstance(value, dict):
        raise RunError(Problem("", f"{path} is damaged: it holds no JSON object", help="start another run"))
    return value
