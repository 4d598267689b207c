"""Packing against a slow, obvious packer, the six worked examples, and the promises of the module as properties."""

from __future__ import annotations

from collections import deque
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftctl.engine.data import packing
from sftctl.engine.data.packing import PACKERS, _fill, counts_of, one_each, pack, stable_order
from sftctl.records import Bins

Piece = tuple[int, int, int]
"""Row, first token, tokens."""

LENGTHS = st.lists(st.integers(0, 24), max_size=40)
MAX_LENGTH = st.integers(1, 20)
STRATEGY = st.sampled_from(sorted(PACKERS))


def pieces_of(bins: Bins) -> list[list[Piece]]:
    """Bins as plain lists, read off the record's definition."""
    pieces = list(zip(bins.sample.tolist(), bins.start.tolist(), bins.length.tolist(), strict=True))
    return [pieces[bins.offsets[k] : bins.offsets[k + 1]] for k in range(len(bins))]


def tokens_of(bins: Bins) -> list[list[int]]:
    """The document lengths of each bin."""
    return [[length for _, _, length in content] for content in pieces_of(bins)]


def slow_best_fit(pieces: list[Piece], max_length: int) -> list[list[Piece]]:
    bins: list[list[Piece]] = []

    def space(content: list[Piece]) -> int:
        return max_length - sum(length for _, _, length in content)

    for piece in sorted(pieces, key=lambda piece: -piece[2]):  # stable: the earlier row first among equals
        fits = [content for content in bins if space(content) >= piece[2]]
        if fits:
            min(fits, key=space).append(piece)  # the first of the fullest: the oldest among equals
        else:
            bins.append([piece])
    return bins


def slow_split(lengths: list[int], max_length: int) -> list[Piece]:
    return [
        (row, start, min(max_length, length - start))
        for row, length in enumerate(lengths)
        for start in range(0, length, max_length)
    ]


def slow_pack(lengths: list[int], max_length: int, strategy: str) -> list[list[Piece]]:
    if strategy == "bfd":
        pieces = [(row, 0, min(length, max_length)) for row, length in enumerate(lengths) if length]
        return slow_best_fit(pieces, max_length)
    if strategy == "bfd_split":
        return slow_best_fit(slow_split(lengths, max_length), max_length)
    stream = [(row, token) for row, length in enumerate(lengths) for token in range(length)]
    bins = []
    for cut in range(0, len(stream), max_length):
        content: list[Piece] = []
        for row, token in stream[cut : cut + max_length]:
            if content and content[-1][0] == row:
                content[-1] = (row, content[-1][1], content[-1][2] + 1)
            else:
                content.append((row, token, 1))
        bins.append(content)
    return bins


def peer_num_bins(lengths: list[int], max_length: int) -> int:
    """Bins of the peer's algorithm: best fit, the bin that has had its space longest first among equals."""
    by_space: dict[int, deque[int]] = {}
    num_bins = 0
    for length in sorted((min(length, max_length) for length in lengths if length), reverse=True):
        space = min((space for space, waiting in by_space.items() if waiting and space >= length), default=max_length)
        if by_space.get(space) and space < max_length:
            number = by_space[space].popleft()
        else:
            number, num_bins = num_bins, num_bins + 1
        by_space.setdefault(space - length, deque()).append(number)
    return num_bins


def optimum(lengths: list[int], max_length: int) -> int:
    """The least number of bins: the best over all orders of filling one bin after the other (at most 9 lengths)."""

    @cache
    def best(left: frozenset[int]) -> tuple[int, int]:
        """(bins closed, tokens in the open one) for the documents not in `left`, the least of all ways."""
        taken = [i for i in range(len(lengths)) if i not in left]
        ways = [(0, 0)] if not taken else []
        for i in taken:
            closed, used = best(left | {i})
            ways.append((closed, used + lengths[i]) if used + lengths[i] <= max_length else (closed + 1, lengths[i]))
        return min(ways)

    closed, used = best(frozenset())
    return closed + (used > 0)


@pytest.mark.parametrize(
    ("strategy", "max_length", "rows", "expected"),
    [
        ("wrapped", 3, [[1, 2, 3], [4, 5, 6, 7], [8]], [([1, 2, 3], [3]), ([4, 5, 6], [3]), ([7, 8], [1, 1])]),
        ("bfd", 4, [[1, 2, 3], [4, 5, 6, 7], [8]], [([4, 5, 6, 7], [4]), ([1, 2, 3, 8], [3, 1])]),
        (
            "bfd",
            4,
            [[1, 2, 3, 4, 5], [6, 7], [8, 9, 10, 11], [12]],
            [([1, 2, 3, 4], [4]), ([8, 9, 10, 11], [4]), ([6, 7, 12], [2, 1])],
        ),
        (
            "bfd_split",
            4,
            [[1, 2, 3, 4, 5], [6, 7], [8, 9, 10, 11], [12]],
            [([1, 2, 3, 4], [4]), ([8, 9, 10, 11], [4]), ([6, 7, 5, 12], [2, 1, 1])],
        ),
        (
            "bfd_split",
            5,
            [[1, 2, 3, 4, 5], [6], [7, 8, 9, 10], [11, 12, 13]],
            [([1, 2, 3, 4, 5], [5]), ([7, 8, 9, 10, 6], [4, 1]), ([11, 12, 13], [3])],
        ),
        ("bfd_split", 4, [[1, 2], [], [3, 4, 5], [], [6]], [([3, 4, 5, 6], [3, 1]), ([1, 2], [2])]),
    ],
)
def test_worked_examples(
    strategy: str, max_length: int, rows: list[list[int]], expected: list[tuple[list[int], list[int]]]
) -> None:
    bins = pack(np.array([len(row) for row in rows]), max_length, strategy)
    laid = [
        ([token for row, start, length in content for token in rows[row][start : start + length]], lengths)
        for content, lengths in zip(pieces_of(bins), tokens_of(bins), strict=True)
    ]
    assert laid == expected


@given(LENGTHS, MAX_LENGTH, STRATEGY)
def test_same_bins_as_the_slow_packer(lengths: list[int], max_length: int, strategy: str) -> None:
    """Every bin holds the same pieces in the same order as the plainest reading of the strategy."""
    assert pieces_of(pack(np.array(lengths), max_length, strategy)) == slow_pack(lengths, max_length, strategy)


@pytest.mark.parametrize("max_length", [64, 1000])
def test_same_bins_as_the_slow_packer_on_many_rows(max_length: int) -> None:
    lengths = np.random.default_rng(max_length).lognormal(4.0, 1.0, 1500).astype(np.int32)
    for strategy in PACKERS:
        assert pieces_of(pack(lengths, max_length, strategy)) == slow_pack(lengths.tolist(), max_length, strategy)


def test_oldest_among_equals_is_the_bin_opened_first() -> None:
    """7 opens bin 0, 5 bin 1; then 4 leaves bin 1 with 1 token free, and 2 bin 0: the last token goes to bin 0."""
    assert tokens_of(pack(np.array([7, 5, 4, 2, 1]), 10, "bfd")) == [[7, 2, 1], [5, 4]]


@given(LENGTHS, MAX_LENGTH, STRATEGY)
def test_no_bin_is_over_max_length_and_none_is_empty(lengths: list[int], max_length: int, strategy: str) -> None:
    """A bin holds 1 to max_length tokens, and a piece at least one."""
    for content in tokens_of(pack(np.array(lengths), max_length, strategy)):
        assert 1 <= sum(content) <= max_length
        assert min(content) >= 1


@given(LENGTHS, MAX_LENGTH, STRATEGY)
def test_tokens_are_conserved_and_in_order(lengths: list[int], max_length: int, strategy: str) -> None:
    """`bfd_split` and `wrapped` hold every token of every row once, `bfd` the first max_length of each."""
    kept: dict[int, list[int]] = {}
    bins = pack(np.array(lengths), max_length, strategy)
    for row, start, length in sorted(piece for content in pieces_of(bins) for piece in content):
        kept.setdefault(row, []).extend(range(start, start + length))
    limit = max_length if strategy == "bfd" else max(lengths, default=0)
    assert kept == {row: list(range(min(length, limit))) for row, length in enumerate(lengths) if length}


@given(st.lists(st.integers(1, 12), max_size=8), st.integers(1, 12), st.sampled_from(["bfd", "bfd_split"]))
def test_number_of_bins_is_near_the_optimum(lengths: list[int], max_length: int, strategy: str) -> None:
    """At most 11/9 of the least possible number of bins, and one."""
    bins = pack(np.array(lengths), max_length, strategy)
    if len(bins.length) <= 9:
        assert len(bins) <= 11 / 9 * optimum(bins.length.tolist(), max_length) + 1


@given(LENGTHS, MAX_LENGTH)
def test_never_more_bins_than_the_peer(lengths: list[int], max_length: int) -> None:
    """Ties decide who shares a bin, never how many bins there are."""
    assert len(pack(np.array(lengths), max_length, "bfd")) <= peer_num_bins(lengths, max_length)


@given(LENGTHS, MAX_LENGTH)
def test_wrapped_fills_every_bin_but_the_last(lengths: list[int], max_length: int) -> None:
    """One stream: ceil(total / max_length) bins."""
    assert len(pack(np.array(lengths), max_length, "wrapped")) == -(-sum(lengths) // max_length)


@given(LENGTHS)
def test_one_each(lengths: list[int]) -> None:
    """Without packing each row that has tokens is a bin, whole and in order."""
    assert pieces_of(one_each(np.array(lengths))) == [[(row, 0, n)] for row, n in enumerate(lengths) if n]


@pytest.mark.parametrize("strategy", sorted(PACKERS))
def test_arrays_have_the_types_of_the_record(strategy: str) -> None:
    bins = pack(np.array([3, 9, 1], dtype=np.int32), 4, strategy)
    assert [bins.sample.dtype, bins.start.dtype, bins.length.dtype, bins.offsets.dtype] == ["i4", "i4", "i4", "i8"]


def test_a_run_of_equal_lengths_is_one_operation() -> None:
    """The worked example of `_fill`, and a million rows of one length that are not gone through one by one."""
    assert _fill([7, 2], [1, 9], 10).tolist() == [[0, 1, 1], [0, 1, 1], [1, 1, 5], [2, 1, 3]]
    assert _fill([300], [1_000_000], 1024).tolist() == [[0, 333_333, 3], [333_333, 1, 1]]


@given(st.lists(st.integers(0, 9) | st.integers(0, 99_999)), st.integers(1, 8))
def test_stable_order_is_that_of_sorted(keys: list[int], block_rows: int) -> None:
    """Python's own stable sort gives the same indices, for keys of more than 16 bits too, block by block."""
    array, num_keys = np.array(keys, dtype=np.int32), max(keys, default=0) + 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_block", lambda num_keys: block_rows)
        counts = counts_of(array, num_keys)
        order = stable_order(array, counts)
    assert counts.tolist() == np.bincount(array, minlength=num_keys).tolist()
    assert order.tolist() == sorted(range(len(keys)), key=keys.__getitem__)
