"""SHA-256 of large files at the speed of the disk.

One thread hashes 0.9 GB/s (measured, AMD EPYC with SHA instructions), less than a good disk writes. So a file is
hashed as a tree of two levels: SHA-256 of the concatenated SHA-256 of its 16 MiB chunks, chunks side by side.

    "abcde" in chunks of two:  H( H("ab") + H("cd") + H("e") )

Writing overlaps with hashing, and the pages are sent to the device every 256 MiB: a last fsync of everything at
once took 1.5 times as long.
"""

from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

CHUNK_BYTES = 16 << 20
SYNC_BYTES = 256 << 20
NUM_THREADS = max(1, min(4, os.cpu_count() or 1))


def _digest(data: bytes | memoryview) -> bytes:
    return hashlib.sha256(data).digest()


def tree_digest(data: bytes, *, chunk_bytes: int = CHUNK_BYTES) -> str:
    """The digest of `data`, the short way: what the classes below compute in pieces."""
    chunks = [_digest(data[start : start + chunk_bytes]) for start in range(0, len(data), chunk_bytes)]
    return hashlib.sha256(b"".join(chunks)).hexdigest()


class HashedFile:
    """A new file that is hashed while it is written, and on the device when it is closed.

    Views handed to `write` must not change before `finish`. Raises OSError as the system does.
    """

    def __init__(self, path: Path, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.num_bytes = 0
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._chunk_bytes = chunk_bytes
        self._pool = ThreadPoolExecutor(NUM_THREADS)
        self._room = threading.Semaphore(4 * NUM_THREADS)
        self._partial = bytearray()
        self._digests: list[Future[bytes]] = []
        self._synced = 0
        self._sync: Future[None] | None = None

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data).cast("B")
        start = 0
        if self._partial:  # fill up the chunk that was begun
            start = min(len(view), self._chunk_bytes - len(self._partial))
            self._partial += view[:start]
            if len(self._partial) == self._chunk_bytes:
                self._hash(bytes(self._partial))
                self._partial.clear()
            self._write(view[:start])
        while start < len(view):
            chunk = view[start : start + self._chunk_bytes]
            if len(chunk) == self._chunk_bytes:
                self._hash(chunk)
            else:
                self._partial += chunk
            self._write(chunk)
            start += len(chunk)

    def _hash(self, chunk: bytes | memoryview) -> None:
        self._room.acquire()
        future = self._pool.submit(_digest, chunk)
        future.add_done_callback(lambda _: self._room.release())
        self._digests.append(future)

    def _write(self, view: memoryview) -> None:
        while view:
            written = os.write(self._descriptor, view)
            view = view[written:]
            self.num_bytes += written
        if self.num_bytes - self._synced >= SYNC_BYTES and (self._sync is None or self._sync.done()):
            if self._sync is not None:
                self._sync.result()
            self._synced = self.num_bytes
            self._sync = self._pool.submit(os.fdatasync, self._descriptor)

    def finish(self) -> str:
        """Flush to the device and close; return the digest."""
        if self._partial:
            self._hash(bytes(self._partial))
        if self._sync is not None:
            self._sync.result()
        os.fsync(self._descriptor)
        digest = hashlib.sha256(b"".join(future.result() for future in self._digests)).hexdigest()
        self.close()
        return digest

    def close(self) -> None:
        if self._descriptor >= 0:
            self._pool.shutdown(wait=True)
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def hash_file(path: Path, *, chunk_bytes: int = CHUNK_BYTES) -> str:
    """The digest of a file, its chunks read and hashed side by side. Raises OSError."""
    size = path.stat().st_size
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            chunks = pool.map(
                lambda start: _digest(os.pread(descriptor, chunk_bytes, start)), range(0, size, chunk_bytes)
            )
            return hashlib.sha256(b"".join(chunks)).hexdigest()
    finally:
        os.close(descriptor)
