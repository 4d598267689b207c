"""One process a run directory: a POSIX record lock on `.lock`, held for the life of the process.

The kernel frees it when the process ends, however it ends, so a lock cannot be stale. A record lock (`lockf`)
and not `flock`, because a child that was forked (a worker that prepares rows) does not inherit it: an orphan of
a killed run must not keep the next one out. Its price: closing any descriptor of the file in the holding process
frees it, so this module is the only one that opens the file, and it remembers what this process holds.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from sftctl.errors import Problem, RunError
from sftctl.runs.files import refusal

_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)
_TAKEN = (errno.EACCES, errno.EAGAIN)

_held: set[Path] = set()
"""The lock files that this process holds."""


class Lock:
    """The right to write in a run directory. `supported` is False where the file system has no locks."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.supported = True
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take the lock; False when another process, or another run of this process, has it."""
        if self.path in _held:
            return False
        descriptor = self._open()
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                os.close(descriptor)
            if error.errno in _TAKEN:
                return False
            if error.errno not in _UNSUPPORTED:
                raise refusal(error, self.path, "lock") from error
            self.supported = False
        if not _is_same_file(descriptor, self.path):  # its holder removed the directory between open and lock
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        _held.add(self.path)
        return True

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise refusal(error, self.path, "open") from error

    def release(self) -> None:
        if self._descriptor is None:
            return
        with contextlib.suppress(OSError):
            os.close(self._descriptor)
        self._descriptor = None
        _held.discard(self.path)


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def is_held(path: Path) -> bool:
    """Whether some process holds the lock file `path`. Takes nothing, and creates nothing."""
    path = path.resolve()
    if path in _held:
        return True
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _TAKEN
    finally:
        os.close(descriptor)
    return False


def in_use(folder: Path, holder: str) -> RunError:
    return RunError(
        Problem(
            "run.run_name",
            f"{folder} is in use by {holder}",
            help="wait for it, stop it, or set another run.run_name",
        )
    )
