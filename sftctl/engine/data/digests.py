"""Names of contents: BLAKE2b over bytes, files and text.

Property: equal digests mean equal bytes. A large file's digest is remembered under its path, size, inode and
both of its times; a changed file has another change time, which no ordinary program can set back.

Trade-off: hashing runs at about 1 GB/s, so files below 64 MiB are hashed at every start and larger ones once.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

SMALL_FILE_BYTES = 64 * 2**20
END_BYTES = 64 * 2**10
RECENT_NS = 2 * 10**9
DIGEST_BYTES = 16


def digest_of_text(*parts: str) -> str:
    """One name for several texts; the boundaries between them count."""
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        state.update(len(raw).to_bytes(8, "little"))
        state.update(raw)
    return state.hexdigest()


def digest_of_files(files: Sequence[Path], memo_dir: Path | None = None) -> str:
    """The bytes of these files, in this order, whatever their names."""
    return digest_of_text(*(digest_of_file(file, memo_dir) for file in files))


def digest_of_file(file: Path, memo_dir: Path | None = None) -> str:
    """The bytes of one file. `memo_dir` remembers the digests of files over 64 MiB."""
    status = file.stat()
    if memo_dir is None or status.st_size < SMALL_FILE_BYTES:
        return _hash(file)
    identity = identity_of(status)
    memo = memo_dir / f"{digest_of_text(str(file.resolve()))}.json"
    try:
        known = json.loads(memo.read_text())
        if known["identity"] == identity:
            return str(known["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    digest = _hash(file)
    if file.stat().st_mtime_ns == status.st_mtime_ns and _settled(status):
        write_atomically(memo, json.dumps({"identity": identity, "digest": digest}).encode())
    return digest


def digest_of_ends(files: Sequence[Path]) -> str:
    """The sizes of these files, in this order, and the first and last 64 KiB of each: not all of their bytes."""
    parts = []
    for file in files:
        with file.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            ends = []
            for place in (0, max(0, size - END_BYTES)):
                stream.seek(place)
                ends.append(hashlib.blake2b(stream.read(END_BYTES), digest_size=DIGEST_BYTES).hexdigest())
        parts += [str(size), *ends]
    return digest_of_text(*parts)


def write_atomically(path: Path, content: bytes) -> None:
    """To a temporary name, flushed, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    aside.replace(path)


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)).hexdigest()


def identity_of(status: os.stat_result) -> list[int]:
    """What tells a file from a changed one: size, both times, inode, device."""
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]


def _settled(status: os.stat_result) -> bool:
    """Whether the file is old enough that a later write within the clock's grain would show."""
    return time.time_ns() - status.st_ctime_ns > RECENT_NS
