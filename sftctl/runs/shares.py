"""What the ranks of a run tell each other through files, while they write one checkpoint together.

Each rank but the main one leaves the names and hashes of its files, or why it could not write them; the main one
waits for all before it writes the manifest. Files and not collectives, because a thread writes: collectives of a
thread would meet those of the training in another order on every rank.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path

from sftctl.errors import Problem, RunError
from sftctl.runs.files import fsync_folder, write_atomically
from sftctl.runs.manifest import FileRecord

PATIENCE_SECONDS = 1800.0
"""How long the main rank waits for the files of another."""


def report_share(folder: Path, rank: int, files: Mapping[str, FileRecord]) -> None:
    """Tell the main rank that this rank's files are on the device."""
    fsync_folder(folder)
    records = {name: [record.num_bytes, record.xxh3_128] for name, record in files.items()}
    write_atomically(folder / f".share-{rank}", json.dumps(records))


def report_failure(folder: Path, rank: int, reason: str) -> None:
    """Tell the main rank not to wait, as far as the disk still takes it."""
    with contextlib.suppress(OSError):
        (folder / f".failed-{rank}").write_text(reason)


def await_share(folder: Path, rank: int, *, patience_seconds: float = PATIENCE_SECONDS) -> dict[str, FileRecord]:
    """The files that another rank wrote, once it has. Raises RunError if it could not, or takes too long."""
    share, failed = folder / f".share-{rank}", folder / f".failed-{rank}"
    deadline = time.monotonic() + patience_seconds
    while not share.exists():
        if failed.exists():
            raise RunError(Problem("", f"rank {rank} could not write its share: {failed.read_text()}"))
        if time.monotonic() > deadline:
            raise RunError(
                Problem("", f"rank {rank} did not write its share of {folder} within {patience_seconds:.0f} s")
            )
        time.sleep(0.02)
    records = json.loads(share.read_text())
    share.unlink()
    return {name: FileRecord(num_bytes, digest) for name, (num_bytes, digest) in records.items()}
