"""How sources are joined: an order of (source, row) over rows that are prepared already. No token is touched.

| way | order |
|---|---|
| concat | all rows of the first source, then of the second, … |
| concat with `fraction` | the same, of each source its first round(share · N) rows; no source is oversampled |
| interleave | a source is drawn by weight, seeded, and gives its next row |

Shares 3 and 1 (0.75, 0.25) of sources of 90 and 20 rows: N = min(90 / 0.75, 20 / 0.25) = 80, so 60 and 20 rows.

Randomness is raw PCG64 words, whose stream numpy keeps across releases (NEP 19): the same order on every rank,
machine and version. `all_exhausted` begins a source anew until the last one has run out, as in `datasets`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sftctl.engine.data.origin import Source
from sftctl.engine.data.plan import permutation
from sftctl.errors import DataError, Problem

Order = tuple[NDArray[np.int16], NDArray[np.int32]]
Mixing = Literal["concat", "interleave"]
Stopping = Literal["first_exhausted", "all_exhausted"]
BLOCK_DRAWS = 2**16
MOST_ROWS = 10**9
_INTERLEAVE_STREAM, _SPLIT_STREAM = 2, 3


def mix(
    sources: Sequence[Source],
    counts: Sequence[int],
    *,
    mixing: Mixing,
    stopping_strategy: Stopping,
    seed: int,
    where: str,
) -> Order:
    """The order of the rows: source int16 [N] and row within it int32 [N]. Raises DataError."""
    check_mixture(sources, mixing=mixing, where=where)
    if mixing == "interleave":
        weights = [1.0 if source.weight is None else source.weight for source in sources]
        return interleave(counts, weights, seed=seed, stopping_strategy=stopping_strategy)
    fractions = [source.fraction for source in sources]
    if any(fraction is not None for fraction in fractions):
        counts = shares(counts, [fraction or 0.0 for fraction in fractions])
    return concat(counts)


def check_mixture(sources: Sequence[Source], *, mixing: Mixing, where: str) -> None:
    """Shares and weights that fit together and the way of mixing; raises DataError."""
    without = [index for index, source in enumerate(sources) if source.fraction is None]
    if mixing == "interleave" and len(without) < len(sources):
        raise DataError(
            Problem(
                f"{where}", "a fraction is for mixing = concat; interleaving goes by weight", help="set weight instead"
            )
        )
    if 0 < len(without) < len(sources):
        raise DataError(
            Problem(
                f"{where}[{without[0]}].fraction",
                "it has no fraction, and other sources have one",
                help="give every source a fraction, or none",
            )
        )


def concat(counts: Sequence[int]) -> Order:
    """Counts 2 and 1: sources 0 0 1, rows 0 1 0."""
    source_of, row_of = np.zeros(sum(counts), dtype=np.int16), np.arange(sum(counts), dtype=np.int32)
    for source, begin in enumerate(accumulate(counts[:-1]), start=1):
        source_of[begin:] = source
        row_of[begin : begin + counts[source]] = np.arange(counts[source], dtype=np.int32)
    return source_of, row_of


def shares(counts: Sequence[int], fractions: Sequence[float]) -> list[int]:
    """How many rows each source gives so that the mixture has these shares and is as large as it can be."""
    normal = _normal(fractions)
    size = min(count / share for count, share in zip(counts, normal, strict=True) if share > 0)
    return [min(count, round(share * size)) for count, share in zip(counts, normal, strict=True)]


def _normal(parts: Sequence[float]) -> list[float]:
    """Shares of one; parts may be as large as floats are."""
    largest = max(parts)
    total = sum(part / largest for part in parts)
    return [part / largest / total for part in parts]


def _refuse_endless(counts: Sequence[int], normal: Sequence[float], stopping_strategy: Stopping) -> None:
    """Raises DataError where sources would be repeated until the mixture has more rows than can be counted."""
    expected = [count / share if share > 0 else math.inf for count, share in zip(counts, normal, strict=True)]
    slowest = expected.index(max(expected))
    if stopping_strategy == "all_exhausted" and expected[slowest] > MOST_ROWS:
        raise DataError(
            Problem(
                f"data.datasets[{slowest}].weight",
                f"its share of {normal[slowest]:.3g} is too small: until its {counts[slowest]} rows have come, the "
                f"others would be repeated over more than {MOST_ROWS:,} rows",
                help='raise its weight, or set data.stopping_strategy = "first_exhausted"',
            )
        )


def interleave(counts: Sequence[int], weights: Sequence[float], *, seed: int, stopping_strategy: Stopping) -> Order:
    """Draw sources by weight until the first, or the last, has given its last row."""
    normal = _normal(weights)
    bounds = np.cumsum(normal)
    _refuse_endless(counts, normal, stopping_strategy)
    left = np.array(counts, dtype=np.int64)
    blocks: list[NDArray[np.int16]] = []
    while min(left) > 0 if stopping_strategy == "first_exhausted" else max(left) > 0:
        words = uniform(BLOCK_DRAWS, seed, before=BLOCK_DRAWS * len(blocks))
        drawn = np.minimum(np.searchsorted(bounds, words, side="right"), len(counts) - 1).astype(np.int16)
        ends = [_place_of_draw(drawn, source, count) for source, count in enumerate(left.tolist())]
        end = min(ends) if stopping_strategy == "first_exhausted" else max(ends)
        blocks.append(drawn[: end + 1])
        left -= np.bincount(drawn, minlength=len(counts))
    drawn = np.concatenate(blocks)
    rows = np.empty(len(drawn), dtype=np.int32)
    for source, count in enumerate(counts):
        mine = np.flatnonzero(drawn == source)
        rows[mine] = np.arange(len(mine), dtype=np.int32) % count
    return drawn, rows


def held_out(num_rows: int, size: int, *, seed: int) -> NDArray[np.bool_]:
    """Which rows are held out: `size` of them, drawn by the seed alone."""
    out = np.zeros(num_rows, dtype=bool)
    out[permutation(num_rows, seed, _SPLIT_STREAM)[:size]] = True
    return out


def uniform(size: int, seed: int, *, before: int = 0, passes: int = 0) -> NDArray[np.float64]:
    """Numbers in [0, 1) from the upper 53 bits of raw words; a longer draw begins with the shorter one.

    `before` of them are jumped over. Each pass over streamed sources draws others.
    """
    entropy = [seed, _INTERLEAVE_STREAM, passes] if passes else [seed, _INTERLEAVE_STREAM]
    words = np.random.PCG64(np.random.SeedSequence(entropy)).advance(before).random_raw(size)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _place_of_draw(drawn: NDArray[np.int16], source: int, count: int) -> int:
    """Where a source is drawn for the `count`-th time; past the end where it is not, -1 where it was before."""
    places = np.flatnonzero(drawn == source)
    return -1 if count <= 0 else int(places[count - 1]) if len(places) >= count else len(drawn)
