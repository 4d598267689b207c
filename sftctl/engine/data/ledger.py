"""The book of the rows: how many were read, kept and left out, and why each one was.

SourceLedger a source; Ledger over all. `as_data` is `data.json`, `dropped` the lines of `dropped.jsonl`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


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
    """One source's rows. Tokens are those kept; `trained_tokens` are targets; the `cut` ones truncation took."""

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
    dropped: tuple[Dropped, ...] = ()

    def as_data(self) -> dict[str, Any]:
        """Plain data, without the list of rows left out."""
        data = asdict(self)
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


def source_ledger_from(data: Mapping[str, Any]) -> SourceLedger:
    """Read back what a store's meta holds."""
    fields = dict(data)
    fields["dropped"] = tuple(Dropped(**row) for row in fields.get("dropped", ()))
    fields["unused_columns"] = tuple(fields["unused_columns"])
    return SourceLedger(**fields)


def reasons_of(dropped: list[Dropped]) -> dict[str, int]:
    """How often each kind of reason, most frequent first."""
    return dict(Counter(row.kind for row in dropped).most_common())
