"""The book of the rows: how many were read, kept and left out, and why each one was.

SourceLedger a source; Ledger over all. `as_data` is `data.json`, `dropped` the lines of `dropped.jsonl`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

DROPPED = "dropped.jsonl"


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that was left out. `row` counts from 1 in the source, `line` from 1 in a text file."""

    source: str
    file: str
    line: int | None
    row: int
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class SourceLedger:
    """One source's rows. Tokens are those kept; `trained_tokens` are targets; the `cut` ones truncation took.

    `rows_used` counts the samples that the mixture takes of the rows kept.
    """

    source: str
    format: str
    unused_columns: tuple[str, ...]
    rows_read: int
    rows_kept: int
    rows_dropped: int
    reasons: Mapping[str, int]
    tokens: int
    trained_tokens: int
    rows_truncated: int
    tokens_cut: int
    trained_tokens_cut: int
    straddling_tokens: int
    rows_used: int = 0
    dropped: Iterable[Dropped] = field(default=(), compare=False, repr=False)

    def as_data(self) -> dict[str, Any]:
        """Plain data, without the list of rows left out."""
        data = asdict(replace(self, dropped=()))
        del data["dropped"]
        return data


@dataclass(frozen=True, slots=True)
class Ledger:
    """All sources."""

    sources: tuple[SourceLedger, ...]

    @property
    def rows_kept(self) -> int:
        return sum(source.rows_kept for source in self.sources)

    @property
    def rows_dropped(self) -> int:
        return sum(source.rows_dropped for source in self.sources)

    def as_data(self) -> dict[str, Any]:
        """What `data.json` says of the rows."""
        return {"sources": [source.as_data() for source in self.sources]}

    def dropped(self) -> Iterator[Dropped]:
        for source in self.sources:
            yield from source.dropped

    def write_dropped(self, path: Path) -> None:
        """`dropped.jsonl`: an object a row that was left out."""
        with path.open("w", encoding="utf-8") as stream:
            for row in self.dropped():
                stream.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")


def source_ledger_from(data: Mapping[str, Any], dropped: Iterable[Dropped]) -> SourceLedger:
    """Read back what a store's meta holds."""
    fields = dict(data)
    fields["unused_columns"] = tuple(fields["unused_columns"])
    return SourceLedger(**fields, dropped=dropped)


COUNTS = (
    "rows_read", "rows_kept", "rows_dropped", "tokens", "trained_tokens", "rows_truncated", "tokens_cut",
    "trained_tokens_cut", "straddling_tokens", "rows_used",
)  # fmt: skip


def added(before: SourceLedger, now: SourceLedger) -> SourceLedger:
    """Two parts of one source as one."""
    reasons = Counter(before.reasons) + Counter(now.reasons)
    first, second = before.as_data(), now.as_data()
    sums: dict[str, Any] = {name: first[name] + second[name] for name in COUNTS}
    return replace(now, reasons=dict(reasons.most_common()), dropped=(), **sums)


class DroppedFile:
    """Rows left out, in a file, a line each: read anew at each pass."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __iter__(self) -> Iterator[Dropped]:
        if self._path.exists():
            with self._path.open(encoding="utf-8") as stream:
                for line in stream:
                    yield Dropped(**json.loads(line))


class DroppedBook:
    """Takes rows left out as they come; to a file in `folder`, or to memory where that is None."""

    def __init__(self, folder: Path | None) -> None:
        self._path = folder / DROPPED if folder is not None else None
        self._rows: list[Dropped] = []
        self._stream: IO[str] | None = None
        self._reasons: Counter[str] = Counter()
        self.first: Dropped | None = None

    def __len__(self) -> int:
        return self._reasons.total()

    def add(self, row: Dropped) -> None:
        self.first = self.first or row
        self._reasons[row.kind] += 1
        if self._path is None:
            self._rows.append(row)
            return
        if self._stream is None:
            self._stream = self._path.open("w", encoding="utf-8")
        text = json.dumps(asdict(row), ensure_ascii=False)
        self._stream.write(text.encode(errors="backslashreplace").decode() + "\n")  # half a character is no UTF-8

    @property
    def reasons(self) -> dict[str, int]:
        """How often each kind of reason, most frequent first."""
        return dict(self._reasons.most_common())

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def rows(self) -> Iterable[Dropped]:
        return self._rows if self._path is None else DroppedFile(self._path)
