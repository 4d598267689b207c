"""What the rows cost: their lengths, the padding they need without packing, how full each strategy packs them.

Padding is counted over batches of rows in a shuffled order, as training draws them; fill is the share of a packed
row that is tokens. `bfd` packs rows cut to max_length, `bfd_split` and `wrapped` whole ones in pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sftctl.engine.data.packing import PACKERS, pack
from sftctl.engine.data.plan import permutation
from sftctl.engine.data.prepare import Prepared

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
CUTTING_STRATEGIES = ("bfd",)
NUM_BARS = 12


@dataclass(frozen=True, slots=True)
class Bar:
    """Rows of at least `low` and less than `high` tokens."""

    low: int
    high: int
    rows: int


@dataclass(frozen=True, slots=True)
class Packing:
    """What a strategy makes of the rows: sequences, their tokens, the share of them that is not padding."""

    strategy: str
    sequences: int
    tokens: int
    fill: float
    steps_per_epoch: int


@dataclass(frozen=True, slots=True)
class DataStats:
    """The figures of a prepared data set. `unpacked` has a row a sequence; its padding is `padding_waste`."""

    rows: int
    tokens: int
    trained_tokens: int
    quantiles: tuple[tuple[float, int], ...]
    histogram: tuple[Bar, ...]
    over_max_length: int
    padding_waste: float
    unpacked: Packing
    packed: tuple[Packing, ...]
    tokens_per_step: float
    prepare_seconds: float
    cached: bool

    def as_data(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        data = asdict(self)
        data["quantiles"] = {f"p{100 * share:g}": length for share, length in self.quantiles}
        return data


def data_stats(
    prepared: Prepared,
    *,
    max_length: int,
    batch_size: int,
    sequences_per_step: int,
    packing_strategy: str | None,
    seed: int = 0,
) -> DataStats:
    """Count. `batch_size` sequences make a micro-batch; `sequences_per_step` a step, over all ranks.

    `packing_strategy` is the one in use, None without packing.
    """
    whole, cut = prepared.whole_lengths, np.minimum(prepared.lengths, np.int64(max_length))
    packed = tuple(
        _packing(cut if strategy in CUTTING_STRATEGIES else whole, max_length, strategy, sequences_per_step)
        for strategy in PACKERS
    )
    tokens = int(cut.sum(dtype=np.int64))
    waste = padding_waste(cut, batch_size, seed=seed)
    unpacked = Packing("none", len(cut), tokens, 1 - waste, _steps(len(cut), sequences_per_step))
    used = next((each for each in packed if each.strategy == packing_strategy), unpacked)
    return DataStats(
        rows=len(whole),
        tokens=tokens,
        trained_tokens=int(prepared.num_trained.sum(dtype=np.int64)),
        quantiles=tuple((share, int(np.quantile(whole, share, method="inverted_cdf"))) for share in QUANTILES),
        histogram=histogram(whole),
        over_max_length=int((whole > max_length).sum()),
        padding_waste=waste,
        unpacked=unpacked,
        packed=packed,
        tokens_per_step=used.tokens / used.steps_per_epoch,
        prepare_seconds=prepared.prepare_seconds,
        cached=prepared.cached,
    )


def padding_waste(lengths: NDArray[np.int32], batch_size: int, *, seed: int) -> float:
    """The share of padding in batches of `batch_size` rows, each as wide as its longest, in shuffled order.

    Lengths 3 1 | 2 2 in batches of two: rows of 3 and of 2, so 2 of 10 places are padding.
    """
    shuffled = lengths[permutation(len(lengths), seed)].astype(np.int64)
    starts = np.arange(0, len(shuffled), batch_size)
    widest = np.maximum.reduceat(shuffled, starts)
    sizes = np.diff(np.append(starts, len(shuffled)))
    return float(1 - shuffled.sum() / (widest * sizes).sum())


def histogram(lengths: NDArray[np.int32]) -> tuple[Bar, ...]:
    """At most NUM_BARS bars of equal, round width that hold all rows."""
    low, high = int(lengths.min()), int(lengths.max()) + 1
    width = _round_width((high - low) / NUM_BARS)
    edges = np.arange(low // width * width, high + width, width)
    counts, _ = np.histogram(lengths, bins=edges)
    return tuple(Bar(int(edge), int(edge + width), int(count)) for edge, count in zip(edges, counts, strict=False))


def _round_width(width: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, …"""
    step = 1
    while True:
        for factor in (1, 2, 5):
            if width <= factor * step:
                return factor * step
        step *= 10


def _packing(lengths: NDArray[np.int32], max_length: int, strategy: str, sequences_per_step: int) -> Packing:
    bins = pack(lengths, max_length, strategy)
    tokens = int(bins.length.sum(dtype=np.int64))
    fill = tokens / (len(bins) * max_length)
    return Packing(strategy, len(bins), tokens, fill, _steps(len(bins), sequences_per_step))


def _steps(sequences: int, sequences_per_step: int) -> int:
    return -(-sequences // sequences_per_step)


__all__: Sequence[str] = ["Bar", "DataStats", "Packing", "data_stats", "histogram", "padding_waste"]
