"""What became of a source's rows, counted as they go by: the figures of its ledger and of its proof."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sftctl.engine.data.formats import Reading, Row
from sftctl.engine.data.labels import Chunk
from sftctl.engine.data.ledger import SourceLedger
from sftctl.engine.data.proof import Tally
from sftctl.engine.data.worker import Fallen


@dataclass(frozen=True, slots=True)
class Settled:
    """What the first good row of a source decided for all: how rows are read, and what ends an answer."""

    reading: Reading
    row_type: type[Row]
    notes: tuple[str, ...]
    stop_tokens: tuple[str, ...]
    stop_ids: tuple[int, ...]


class Book:
    """Counts of one source, or of a part of it."""

    def __init__(self, settled: Settled) -> None:
        self._settled = settled
        self._tally = Tally()
        self._kept = self._truncated = self._tokens_cut = self._trained_cut = 0

    def add(self, chunk: Chunk, trained_cut: NDArray[np.int64]) -> None:
        """Rows that are kept, and how many targets truncation took of each."""
        self._tally.add(chunk)
        self._kept += len(chunk)
        self._truncated += int((chunk.lengths < chunk.whole).sum())
        self._tokens_cut += int((chunk.whole - chunk.lengths).sum())
        self._trained_cut += int(trained_cut.sum())

    def add_fallen(self, fallen: Sequence[Fallen]) -> None:
        """Rows that are left out: truncation may have taken what trains in them."""
        self._tokens_cut += sum(row.tokens_cut for row in fallen)
        self._trained_cut += sum(row.trained_cut for row in fallen)

    def meta(self, source: str, *, num_read: int, reasons: Mapping[str, int]) -> dict[str, Any]:
        """What a store keeps beside its arrays: plain data. `reasons` counts the rows left out."""
        settled = self._settled
        ledger = SourceLedger(
            source=source,
            format=settled.reading.format,
            unused_columns=settled.reading.unused,
            rows_read=num_read,
            rows_kept=self._kept,
            rows_dropped=sum(reasons.values()),
            reasons=reasons,
            tokens=self._tally.tokens,
            trained_tokens=self._tally.trained,
            rows_truncated=self._truncated,
            tokens_cut=self._tokens_cut,
            trained_tokens_cut=self._trained_cut,
            straddling_tokens=self._tally.straddling,
        )
        return {
            "ledger": ledger.as_data(),
            "tally": self._tally.as_data(),
            "stop_tokens": list(settled.stop_tokens),
            "stop_token_ids": list(settled.stop_ids),
            "notes": list(settled.notes),
        }
