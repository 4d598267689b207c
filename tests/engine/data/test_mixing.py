"""Orders of rows: shares, draws, held-out rows; the same everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftctl.engine.data.mixing import check_mixture, concat, held_out, interleave, mix, shares, uniform
from sftctl.engine.data.origin import Source
from sftctl.errors import DataError


def test_the_example_of_the_docstring() -> None:
    assert shares([90, 20], [3, 1]) == [60, 20]
    assert shares([90, 20], [0.75, 0.25]) == [60, 20]


@given(st.lists(st.tuples(st.integers(1, 1000), st.floats(0.01, 10)), min_size=1, max_size=5))
def test_shares_oversample_nothing_and_waste_nothing(sources: list[tuple[int, float]]) -> None:
    """Each source within one row of its share, none asked for more than it has, and one of them used up."""
    counts, fractions = [count for count, _ in sources], [fraction for _, fraction in sources]
    taken = shares(counts, fractions)
    assert all(0 <= rows <= count for rows, count in zip(taken, counts, strict=True))
    assert any(rows == count for rows, count in zip(taken, counts, strict=True))
    size = min(count * sum(fractions) / fraction for count, fraction in zip(counts, fractions, strict=True))
    for rows, fraction in zip(taken, fractions, strict=True):
        assert abs(rows - size * fraction / sum(fractions)) <= 1


def slow_interleave(counts: list[int], weights: list[float], seed: int, stopping: str) -> list[tuple[int, int]]:
    """Draw by draw."""
    order, given_, done = [], [0] * len(counts), [False] * len(counts)
    for draw in uniform(10_000, seed).tolist():
        source, bound = 0, weights[0] / sum(weights)
        while draw >= bound and source + 1 < len(counts):
            source += 1
            bound += weights[source] / sum(weights)
        order.append((source, given_[source] % counts[source]))
        given_[source] += 1
        done[source] |= given_[source] == counts[source]
        if any(done) if stopping == "first_exhausted" else all(done):
            return order
    raise AssertionError("not within 10,000 draws")


@given(
    st.lists(st.tuples(st.integers(1, 20), st.sampled_from([1.0, 2.0, 4.0])), min_size=1, max_size=4),
    st.integers(0, 5),
    st.sampled_from(["first_exhausted", "all_exhausted"]),
)
def test_interleaving_is_that_of_a_loop(sources: list[tuple[int, float]], seed: int, stopping: Any) -> None:
    counts, weights = [count for count, _ in sources], [weight for _, weight in sources]
    source, row = interleave(counts, weights, seed=seed, stopping_strategy=stopping)
    assert list(zip(source.tolist(), row.tolist(), strict=True)) == slow_interleave(counts, weights, seed, stopping)


def test_draws_follow_the_weights() -> None:
    source, _ = interleave([10_000, 10_000], [3, 1], seed=0, stopping_strategy="first_exhausted")
    assert abs(float((source == 0).mean()) - 0.75) < 0.01


@given(st.integers(1, 300), st.integers(0, 9), st.data())
def test_held_out_rows_are_as_many_as_asked(num_rows: int, seed: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(0, num_rows))
    out = held_out(num_rows, size, seed=seed)
    assert (len(out), int(out.sum())) == (num_rows, size)


def test_draws_are_pinned() -> None:
    """The words of PCG64 do not change with numpy's releases: another order would be another run."""
    assert np.flatnonzero(held_out(20, 4, seed=42)).tolist() == [0, 6, 8, 11]
    source, _ = interleave([9, 9], [1, 1], seed=42, stopping_strategy="first_exhausted")
    assert source.tolist() == [0, 1, 0, 0, 0, 1, 0, 1, 1, 1, 1, 1, 1, 0, 0, 1]


@pytest.mark.parametrize(
    ("sources", "mixing", "message"),
    [
        ([Source("a", fraction=1), Source("b")], "concat", r"data.datasets\[1\].fraction: it has no fraction"),
        ([Source("a", fraction=1)], "interleave", "a fraction is for mixing = concat"),
    ],
)
def test_shares_that_do_not_fit_together(sources: list[Source], mixing: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_mixture(sources, mixing=mixing, where="data.datasets")


def test_concat_and_fractions_by_hand() -> None:
    source, row = concat([2, 1])
    assert (source.tolist(), row.tolist()) == ([0, 0, 1], [0, 1, 0])
    settings: Any = {"stopping_strategy": "first_exhausted", "seed": 0, "where": ""}
    source, row = mix([Source("a", fraction=0.5), Source("b", fraction=0.5)], [5, 2], mixing="concat", **settings)
    assert (source.tolist(), row.tolist()) == ([0, 0, 1, 1], [0, 1, 0, 1])
