"""metrics.jsonl: one JSON object a logged step or evaluation, appended, floats that read back exactly.

A record is one write of one whole line. A process that dies in it leaves a last line without its end; readers
pass over that line, and the next writer removes it. A run that goes on from step k first cuts the records
beyond k, which its steps will write again: so the file of a run that was stopped equals the file of one that
was not, in all but the times. That rests on an order which the driver keeps: a step's records, its evaluation's
among them, are written before its checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from sftctl.errors import Problem, RunError
from sftctl.runs.files import json_line, number_from_json, refusals, write_atomically


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a metrics file, also of one that is being written. Raises RunError for a damaged line."""
    for _, record in _lines(path):
        yield {key: number_from_json(value) for key, value in record.items()}


def last_record(path: Path, *, having: str) -> dict[str, Any] | None:
    """The last record with a number `having`, from the end of the file alone; None where there is none near it."""
    try:
        with open(path, "rb") as file:
            start = max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES)
            file.seek(start)
            lines = file.read().split(b"\n")
    except OSError:
        return None
    for line in reversed(lines[1 if start else 0 : -1]):
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if _is_record(record) and isinstance(number_from_json(record.get(having)), int | float):
                return {key: number_from_json(value) for key, value in record.items()}
    return None


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    with refusals(path, "read"):
        if not path.exists():
            return
        content = path.read_bytes()
    lines = content.split(b"\n")
    lines.pop()  # b"" after a whole last line, else the half-written one
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise _damaged(path, number, str(error)) from error
        if not _is_record(record):
            raise _damaged(path, number, "not a record of a step")
        yield line, record


def _is_record(value: Any) -> bool:
    return isinstance(value, dict) and type(value.get("step")) is int


def _damaged(path: Path, number: int, reason: str) -> RunError:
    return RunError(Problem("", f"line {number} of {path} is damaged: {reason}", help="remove that line to go on"))


TAIL_BYTES = 64 << 10


class MetricsWriter:
    """Appends records. `after_step`: the step that the run goes on from; 0 starts the file anew."""

    def __init__(self, path: Path, *, after_step: int = 0) -> None:
        self.path = path
        cut_after(path, after_step)
        with refusals(path, "write"):
            self._file: IO[bytes] = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by close()

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record. A line that the disk did not take whole is removed again before RunError is raised."""
        line = json_line(record)
        start = os.fstat(self._file.fileno()).st_size
        with refusals(self.path, "write"):
            try:
                written = self._file.write(line)
                while written < len(line):
                    written += self._file.write(line[written:])
            except OSError:
                os.ftruncate(self._file.fileno(), start)
                raise

    def sync(self) -> None:
        """Flush to the device: before a checkpoint that counts on these records is published."""
        with refusals(self.path, "write"):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def cut_after(path: Path, step: int) -> int:
    """Keep the records up to `step` and whole lines only; return how many records went. 0 keeps nothing but
    what was recorded before the first step of a run that goes on from nowhere, which is nothing either."""
    if not path.exists():
        return 0
    kept, dropped = [], 0
    for line, record in _lines(path):
        if step > 0 and record.get("step", 0) <= step:
            kept.append(line + b"\n")
        else:
            dropped += 1
    content = b"".join(kept)
    if content != path.read_bytes():
        write_atomically(path, content)
    return dropped
