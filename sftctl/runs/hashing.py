"""XXH3 (128 bits) of large files, while they are written or read, at the speed of the disk.

The digest finds what accidents do: flipped bits, cut files, pages that never arrived. It is no signature, and no
digest beside the file could be one: who can change the file can change its manifest. SHA-256 was here before; it
made the processor the limit (0.6 to 0.9 GB/s a core against 6 GB/s, measured on an AMD EPYC: a checkpoint of 1.6 GB
was written at a third of the disk's rate and took two seconds of two cores from the training beside it).

Pages are sent to the device every 256 MiB while writing goes on, so that the last fsync has little left to do.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import xxhash

CHUNK_BYTES = 4 << 20
"""Hashed and then written while it is still in the cache."""
SYNC_BYTES = 256 << 20


class HashedFile:
    """A new file that is hashed while it is written, and on the device when `finish` returns.

    Raises OSError as the system does.
    """

    def __init__(self, path: Path) -> None:
        self.num_bytes = 0
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._hash = xxhash.xxh3_128()
        self._pool = ThreadPoolExecutor(1)
        self._synced = 0
        self._sync: Future[None] | None = None

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), CHUNK_BYTES):
            chunk = view[start : start + CHUNK_BYTES]
            self._hash.update(chunk)
            self._write(chunk)

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
        """Flush to the device and close; return the digest in hex."""
        if self._sync is not None:
            self._sync.result()
        os.fsync(self._descriptor)
        self.close()
        return self._hash.hexdigest()

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


def hash_file(path: Path) -> str:
    """The digest of a file in hex. Raises OSError."""
    digest, buffer = xxhash.xxh3_128(), memoryview(bytearray(CHUNK_BYTES))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()
