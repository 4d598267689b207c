"""Spans onto tokens, cuts, and special tokens around plain text, against a reference that goes token by token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftctl.engine.data import labels
from sftctl.engine.data.formats import TokensRow
from sftctl.engine.data.labels import Chunk
from sftctl.engine.data.rendering import ROLE_CODES, Loss, RenderedRow
from sftctl.engine.data.tokens import Encoded
from sftctl.records import Rendered, Span


def encoded(*rows: list[tuple[int, int]]) -> Encoded:
    """Tokens at these places; ids count up."""
    places = [place for row in rows for place in row]
    return Encoded(
        np.arange(len(places), dtype=np.int32),
        np.array([start for start, _ in places], dtype=np.int64),
        np.array([end for _, end in places], dtype=np.int64),
        np.cumsum([0, *(len(row) for row in rows)]),
        np.zeros(len(rows), dtype=bool),
    )


def rendered(length: int, *spans: tuple[int, int, float], answer: tuple[int, int] | None = None) -> RenderedRow:
    return RenderedRow(Rendered("x" * length, tuple(Span(*span) for span in spans), True), (), answer)


def test_the_example_of_the_docstring() -> None:
    """Tokens ab cd efg: a span [2, 5) trains cd and efg; in a span [1, 5) ab straddles."""
    tokens = encoded([(0, 2), (2, 4), (4, 7)])
    chunk = labels.label(tokens, [rendered(7, (2, 5, 1.0))])
    assert chunk.trained.tolist() == [False, True, True]
    assert not chunk.straddling.any()
    chunk = labels.label(tokens, [rendered(7, (1, 5, 1.0))])
    assert chunk.trained.tolist() == [False, True, True]
    assert chunk.straddling.tolist() == [True, False, False]


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[tuple[int, int]], RenderedRow]:
    """A text cut into tokens, some of which share a character, and sorted spans over it."""
    sizes = draw(st.lists(st.integers(1, 4), max_size=8))
    places, cursor = [], 0
    for size in sizes:
        places += [(cursor, cursor + size)] * draw(st.sampled_from([1, 1, 3]))
        cursor += size
    edges = sorted(set(draw(st.lists(st.integers(0, cursor), max_size=8))))
    pairs = list(zip(edges[::2], edges[1::2], strict=False))
    spans = [(start, end, draw(st.sampled_from([1.0, 0.5]))) for start, end in pairs]
    return places, rendered(cursor, *spans)


@given(st.lists(rows(), min_size=1, max_size=5))
@settings(deadline=None)
def test_labels_are_those_of_a_loop_over_tokens(batch: list[tuple[list[tuple[int, int]], RenderedRow]]) -> None:
    """A token belongs to the span it starts inside; one that reaches into a span from before does not train."""
    chunk = labels.label(encoded(*(places for places, _ in batch)), [row for _, row in batch])
    weights, straddling = [], []
    for places, row in batch:
        for number, (start, end) in enumerate(places):
            inside = [span for span in row.rendered.spans if span.start <= start < span.end]
            weights.append(inside[0].weight if inside and number else 0.0)
            across = any(start < span.start < end for span in row.rendered.spans)
            last = number + 1 == len(places) or places[number + 1][0] != start
            straddling.append(across and not inside and last)
    assert chunk.trained.tolist() == [weight > 0 for weight in weights]
    assert chunk.straddling.tolist() == straddling
    if chunk.weights is not None:
        assert chunk.weights.tolist() == weights
    else:
        assert all(span.weight == 1 for _, row in batch for span in row.rendered.spans)


def test_spans_in_bytes_where_tokens_are_in_bytes() -> None:
    """é is two bytes: the span of the characters [1, 2) is that of the bytes [2, 3)."""
    text = "éab"
    tokens = Encoded(np.arange(4, dtype=np.int32), np.arange(4), np.arange(1, 5), np.array([0, 4]), np.array([True]))
    chunk = labels.label(tokens, [RenderedRow(Rendered(text, (Span(1, 2),), True), (), (1, 3))])
    assert chunk.trained.tolist() == [False, False, True, False]
    assert chunk.answers.tolist() == [[2, 4]]


def make_chunk(lengths: list[int], *, seed: int = 0) -> Chunk:
    draw = np.random.default_rng(seed)
    offsets = np.cumsum([0, *lengths])
    size = int(offsets[-1])
    answers = np.array([[max(0, n - 3), n - 1] if n > 2 else [-1, -1] for n in lengths], dtype=np.int32)
    return labels.without_first(
        Chunk(
            draw.integers(0, 99, size).astype(np.int32),
            draw.random(size) < 0.7,
            draw.random(size).astype(np.float32),
            draw.integers(0, 9, size).astype(np.uint8),
            offsets,
            answers.reshape(-1, 2),
            draw.random(size) < 0.1,
            np.array(lengths, dtype=np.int32),
            draw.random(size) < 0.1,
        )
    )


def split(chunk: Chunk, values: Any) -> list[list[Any]]:
    return [values[low:high].tolist() for low, high in zip(chunk.offsets, chunk.offsets[1:], strict=False)]


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(2, 6), st.sampled_from(["keep_start", "keep_end"])
)
def test_a_cut_is_that_of_a_slice(lengths: list[int], max_length: int, mode: Any) -> None:
    chunk = make_chunk(lengths)
    cut = labels.truncate(chunk, max_length, mode)
    part = slice(0, max_length) if mode == "keep_start" else slice(-max_length, None)
    assert split(cut, cut.ids) == [row[part] for row in split(chunk, chunk.ids)]
    expected = [row[part] for row in split(chunk, chunk.trained)]
    assert split(cut, cut.trained) == [[False, *row[1:]] if row else [] for row in expected]
    assert cut.whole.tolist() == lengths
    for row, length in enumerate(lengths):
        assert cut.answers[row].tolist() == ([-1, -1] if length > max_length else chunk.answers[row].tolist())


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.data())
def test_selected_rows_are_whole(lengths: list[int], data: st.DataObject) -> None:
    chunk = make_chunk(lengths)
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths))))
    kept = labels.select(chunk, keep)
    for name in ("ids", "trained", "weights", "roles", "straddling"):
        rows_of = split(chunk, getattr(chunk, name))
        assert split(kept, getattr(kept, name)) == [row for row, wanted in zip(rows_of, keep, strict=True) if wanted]
    assert kept.whole.tolist() == [n for n, wanted in zip(lengths, keep, strict=True) if wanted]


@given(
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=6),
    prefix=st.lists(st.integers(200, 202), max_size=2),
    suffix=st.lists(st.integers(300, 302), max_size=2),
    eos=st.none() | st.sampled_from([5, 300, 301]),
    ends_with_eos=st.booleans(),
)
def test_framed_rows_have_one_eos_and_what_the_tokenizer_adds(
    lengths: list[int], prefix: list[int], suffix: list[int], eos: int | None, ends_with_eos: bool
) -> None:
    chunk = make_chunk(lengths)
    if ends_with_eos and eos is not None:
        chunk.ids[chunk.offsets[1:][chunk.lengths > 0] - 1] = eos
    framed = labels.framed(chunk, prefix, suffix, eos)
    for ids, trained, roles, old in zip(
        *(split(framed, values) for values in (framed.ids, framed.trained, framed.roles)),
        split(chunk, chunk.ids),
        strict=True,
    ):
        expected = [*prefix, *old, *suffix]
        if eos is not None and (not (old or suffix) or (suffix or old)[-1] != eos):
            expected.append(eos)
        assert ids == expected
        assert not any(trained[: len(prefix)])
        if eos is not None and len(ids) > 1 and roles[-1] != ROLE_CODES["prompt"]:
            assert trained[-1]
    assert framed.whole.tolist() == framed.lengths.tolist()


@pytest.mark.parametrize(
    ("row", "loss", "trained"),
    [
        (TokensRow([1, 2, 3]), Loss(), [False, True, True]),
        (TokensRow([1, 2, 3], labels=[-100, -100, 3]), Loss(), [False, False, True]),
        (TokensRow([1, 2, 3], completion_mask=[0, 0, 1]), Loss(), [False, False, True]),
        (TokensRow([1, 2, 3], completion_mask=[0, 0, 1]), Loss(completion_only_loss=False), [False, True, True]),
        (TokensRow([1, 2, 3], completion_mask=[0, 0, 1], assistant_masks=[0, 1, 0]), Loss(), [False, False, False]),
        (TokensRow([1, 2, 3], labels=[1, 2, -100], assistant_masks=[0, 1, 1]), Loss(), [False, True, False]),
    ],
)
def test_rows_of_ids_train_what_all_their_masks_allow(row: TokensRow, loss: Loss, trained: list[bool]) -> None:
    assert labels.of_tokens([row], loss, []).trained.tolist() == trained
