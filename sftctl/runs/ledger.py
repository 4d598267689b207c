"""What became of the rows: data.json, the sums of each source, and dropped.jsonl, every row that was left out.

Rows are named by source and row number and given a reason; their text is not copied, since what is wrong with a
row is often that it should not be anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sftctl.runs.directory import RunDirectory
from sftctl.runs.files import read_json, write_json, write_json_lines


def write_ledger(run: RunDirectory, ledger: Mapping[str, Any], dropped: Iterable[Mapping[str, Any]]) -> None:
    """Write data.json (`ledger`: sources, tokens, packing fill, plan hash) and dropped.jsonl (source, row, reason)."""
    write_json_lines(run.dropped, dropped)
    write_json(run.data, ledger)


def read_ledger(run: RunDirectory) -> dict[str, Any] | None:
    return read_json(run.data)


def read_dropped(run: RunDirectory) -> Iterator[dict[str, Any]]:
    """The rows of dropped.jsonl, none where there is no such file."""
    if run.dropped.exists():
        with run.dropped.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)
