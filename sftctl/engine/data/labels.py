"""Character spans onto tokens: which tokens train, with what weight, whose they are; then the cut to length.

    Encoded + RenderedRows -> Chunk -> truncate -> Chunk

A token belongs to a span when it starts inside it. One that starts before a span and reaches into it straddles
the boundary: it does not train, and is counted. All over the flat batch at once, in numpy.

    text     a b c d e f g         span [2, 5)
    tokens   ab  cd  efg           starts 0 2 4
    trained  .   T   T             efg starts inside; with a span [1, 5) ab would straddle

Position 0 of a document trains nothing (there is nothing to predict it from); it is taken out here already, so
that every count is a count of targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sftctl.engine.data.formats import TokensRow
from sftctl.engine.data.rendering import ROLE_CODES, Loss, RenderedRow
from sftctl.engine.data.tokens import Encoded
from sftctl.records import IGNORE_INDEX

TruncationMode = Literal["keep_start", "keep_end", "drop", "error"]
NO_ANSWER = -1


@dataclass(frozen=True, slots=True)
class Chunk:
    """A batch of tokenised rows, flat: row r is `offsets[r]:offsets[r + 1]`.

    `weights` is None where every trained token weighs 1. `answers[r]` are the tokens of the last answer, without
    its stop token, or -1. `straddling` marks tokens across a span's beginning. `whole[r]` is the row's length
    before any cut. `stops` marks the tokens that end an answer, whether they train or not.
    """

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    weights: NDArray[np.float32] | None
    roles: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    answers: NDArray[np.int32]
    straddling: NDArray[np.bool_]
    whole: NDArray[np.int32]
    stops: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    def sums(self, values: NDArray[Any]) -> NDArray[np.int64]:
        """The sum of a per-token array over each row."""
        total = np.zeros(len(values) + 1, dtype=np.int64)
        np.cumsum(values, out=total[1:])
        return total[self.offsets[1:]] - total[self.offsets[:-1]]


def label(encoded: Encoded, rows: Sequence[RenderedRow]) -> Chunk:
    """Lay the spans of rendered rows over their tokens."""
    places = _Places(encoded, rows)
    spans = [(row, span.start, span.end) for row, item in enumerate(rows) for span in item.rendered.spans]
    which = places.span_of_tokens(spans)
    trained = which >= 0
    given = [span.weight for item in rows for span in item.rendered.spans]
    weights = None
    if any(weight != 1.0 for weight in given):
        weights = np.append(np.array(given, dtype=np.float32), np.float32(0))[which]
    regions = [(row, start, end) for row, item in enumerate(rows) for start, end, _ in item.roles]
    codes = np.array([code for item in rows for _, _, code in item.roles] + [0], dtype=np.uint8)
    chunk = Chunk(
        encoded.ids,
        trained,
        weights,
        codes[places.span_of_tokens(regions)],
        encoded.offsets,
        places.answers(rows),
        places.straddling(spans, trained),
        np.diff(encoded.offsets).astype(np.int32),
        places.span_of_tokens([(row, *stop) for row, item in enumerate(rows) for stop in item.stops]) >= 0,
    )
    return without_first(chunk)


class _Places:
    """Positions of all rows of a batch on one line, so that one search places all spans.

    Row r's positions begin at `base[r]`; rows are one apart, so that an empty row has a place too.
    """

    def __init__(self, encoded: Encoded, rows: Sequence[RenderedRow]) -> None:
        self._offsets = encoded.offsets
        # The texts whose characters and bytes differ; where they do not, a place is a place.
        self._wide = [
            item.rendered.text if in_bytes and not item.rendered.text.isascii() else None
            for item, in_bytes in zip(rows, encoded.in_bytes.tolist(), strict=True)
        ]
        lengths = [self._position(row, len(item.rendered.text)) for row, item in enumerate(rows)]
        self._base = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(np.array(lengths, dtype=np.int64) + 1, out=self._base[1:])
        shift = np.repeat(self._base[:-1], np.diff(encoded.offsets))
        self._starts = encoded.starts + shift
        self._ends = encoded.ends + shift

    def _position(self, row: int, place: int) -> int:
        """A character's place, in bytes where the row's tokens are placed in bytes."""
        text = self._wide[row]
        return place if text is None else len(text[:place].encode())

    def _bounds(self, spans: Sequence[tuple[int, int, int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        places = np.array(spans, dtype=np.int64).reshape(-1, 3)
        for number, (row, start, end) in enumerate(spans):
            if self._wide[row] is not None:
                places[number, 1:] = self._position(row, start), self._position(row, end)
        base = self._base[places[:, 0]]
        return base + places[:, 1], base + places[:, 2]

    def span_of_tokens(self, spans: Sequence[tuple[int, int, int]]) -> NDArray[np.int64]:
        """For each token the index of the span it starts in, or -1. Spans are sorted; a later one ends the one before.

        Few spans are looked up among many tokens: starts 0 2 4 6, spans [2, 5) and [6, 9): runs of 1, 2, 0, 1 tokens
        in none, the first, none, the second.
        """
        starts, ends = self._bounds(spans)
        first = np.searchsorted(self._starts, starts)
        last = np.maximum(np.searchsorted(self._starts, ends), first)
        last[:-1] = np.minimum(last[:-1], first[1:])
        runs = np.empty(2 * len(spans) + 1, dtype=np.int64)
        runs[0::2] = np.append(first, len(self._starts)) - np.insert(last, 0, 0)
        runs[1::2] = last - first
        which = np.full(len(runs), -1, dtype=np.int64)
        which[1::2] = np.arange(len(spans))
        return np.repeat(which, runs)

    def straddling(self, spans: Sequence[tuple[int, int, int]], trained: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which untrained tokens reach into a span from before it."""
        across = np.zeros(len(self._starts), dtype=bool)
        if not spans or not len(self._starts):
            return across
        spans = [span for span in spans if span[2] > span[1]]
        starts, _ = self._bounds(spans)
        rows = np.array([row for row, _, _ in spans], dtype=np.int64)
        token = np.searchsorted(self._starts, starts, side="left") - 1
        inside = (token >= 0) & (token >= self._offsets[rows])
        across[token[inside & (self._ends[token] > starts) & ~trained[token]]] = True
        return across

    def answers(self, rows: Sequence[RenderedRow]) -> NDArray[np.int32]:
        """The tokens of each row's last answer, [first, end); -1 where there is none, or a token straddles into it."""
        found = np.full((len(rows), 2), NO_ANSWER, dtype=np.int32)
        wanted = [(row, *item.answer) for row, item in enumerate(rows) if item.answer is not None]
        if not wanted:
            return found
        starts, ends = self._bounds(wanted)
        index = np.array([row for row, _, _ in wanted], dtype=np.int64)
        first = np.searchsorted(self._starts, starts, side="left")
        last = np.searchsorted(self._starts, ends, side="left")
        before = np.maximum(first - 1, 0)
        clean = (first <= self._offsets[index]) | (self._ends[before] <= starts)
        kept = index[clean]
        found[kept, 0] = (first - self._offsets[index])[clean]
        found[kept, 1] = (last - self._offsets[index])[clean]
        return found


def without_first(chunk: Chunk) -> Chunk:
    """Take position 0 of each row out of what trains."""
    trained = chunk.trained.copy()
    trained[chunk.offsets[:-1][chunk.lengths > 0]] = False
    weights = None if chunk.weights is None else np.where(trained, chunk.weights, np.float32(0))
    return replace(chunk, trained=trained, weights=weights)


def framed(chunk: Chunk, prefix: Sequence[int], suffix: Sequence[int], eos: int | None) -> Chunk:
    """Put the tokenizer's own special tokens around plain text, and the EOS token after it unless it is there.

    What comes before does not train; the EOS token does.
    """
    last = np.array([suffix[-1]] * len(chunk) if suffix else _last_ids(chunk), dtype=np.int64)
    wants_eos = (last != eos) if eos is not None else np.zeros(len(chunk), dtype=bool)
    num_before, num_after = len(prefix), len(suffix) + wants_eos
    offsets = np.zeros(len(chunk) + 1, dtype=np.int64)
    np.cumsum(chunk.lengths + num_before + num_after, out=offsets[1:])
    target = np.arange(len(chunk.ids)) + np.repeat(offsets[:-1] - chunk.offsets[:-1] + num_before, chunk.lengths)

    def spread(values: NDArray[Any], dtype: type) -> NDArray[Any]:
        out: NDArray[Any] = np.zeros(int(offsets[-1]), dtype=dtype)
        out[target] = values
        return out

    ids, trained, roles = spread(chunk.ids, np.int32), spread(chunk.trained, np.bool_), spread(chunk.roles, np.uint8)
    straddling, stops = spread(chunk.straddling, np.bool_), np.zeros(len(ids), dtype=bool)
    weights = None if chunk.weights is None else spread(chunk.weights, np.float32)
    for place, token in enumerate(prefix):
        ids[offsets[:-1] + place] = token
    for place, token in enumerate(reversed(suffix)):
        ids[offsets[1:] - 1 - place - wants_eos] = token
    if eos is not None:
        ends = offsets[1:][wants_eos] - 1
        ids[ends], trained[ends] = eos, True
        final = offsets[1:] - 1
        own = (ids[final] == eos) & (roles[final] != ROLE_CODES["prompt"])  # not one that a prompt ends with
        stops[final[own]] = True
        trained |= stops
        if weights is not None:
            weights[ends] = 1
    answers = np.where(chunk.answers == NO_ANSWER, NO_ANSWER, chunk.answers + num_before).astype(np.int32)
    whole = np.diff(offsets).astype(np.int32)
    return without_first(Chunk(ids, trained, weights, roles, offsets, answers, straddling, whole, stops))


def _last_ids(chunk: Chunk) -> list[int]:
    return [
        int(chunk.ids[end - 1]) if end > start else -1
        for start, end in zip(chunk.offsets, chunk.offsets[1:], strict=False)
    ]


def of_tokens(rows: Sequence[TokensRow], loss: Loss, stop_ids: Sequence[int]) -> Chunk:
    """Rows that came as ids, in which every one of `stop_ids` ends an answer.

    Every mask they carry applies; completion_only_loss = false leaves out completion_mask.
    """
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row.input_ids) for row in rows], out=offsets[1:])
    ids = np.concatenate([np.array(row.input_ids, dtype=np.int32) for row in rows])
    trained = np.ones(len(ids), dtype=bool)
    for row, start, end in zip(rows, offsets, offsets[1:], strict=False):
        part = trained[start:end]
        if row.labels is not None:
            part &= np.array(row.labels) != IGNORE_INDEX
        if row.completion_mask is not None and loss.completion_only_loss is not False:
            part &= np.array(row.completion_mask, dtype=bool)
        if row.assistant_masks is not None:
            part &= np.array(row.assistant_masks, dtype=bool)
    roles = np.full(len(ids), ROLE_CODES["tokens"], dtype=np.uint8)
    answers = np.full((len(rows), 2), NO_ANSWER, dtype=np.int32)
    whole = np.diff(offsets).astype(np.int32)
    straddling, stops = np.zeros(len(ids), dtype=bool), np.isin(ids, stop_ids)
    return without_first(Chunk(ids, trained, None, roles, offsets, answers, straddling, whole, stops))


def truncate(chunk: Chunk, max_length: int, mode: TruncationMode) -> Chunk:
    """Cut each row to max_length: its first tokens (keep_start) or its last (keep_end). Others are not for here."""
    lengths = chunk.lengths
    if not (lengths > max_length).any():
        return chunk
    assert mode in ("keep_start", "keep_end")
    positions = np.arange(len(chunk.ids)) - np.repeat(chunk.offsets[:-1], lengths)
    first = np.zeros(len(chunk), dtype=np.int64) if mode == "keep_start" else np.maximum(lengths - max_length, 0)
    low = np.repeat(first, lengths)
    keep = (positions >= low) & (positions < low + max_length)
    offsets = np.zeros(len(chunk) + 1, dtype=np.int64)
    np.cumsum(np.minimum(lengths, max_length), out=offsets[1:])
    answers = chunk.answers.copy()
    answers[lengths > max_length] = NO_ANSWER  # half a prompt, or half an answer, is no test of a model
    cut = replace(
        chunk,
        ids=chunk.ids[keep],
        trained=chunk.trained[keep],
        weights=None if chunk.weights is None else chunk.weights[keep],
        roles=chunk.roles[keep],
        straddling=chunk.straddling[keep],
        stops=chunk.stops[keep],
        offsets=offsets,
        answers=answers,
    )
    return without_first(cut)


def select(chunk: Chunk, rows: NDArray[np.bool_]) -> Chunk:
    """The rows where `rows` is true."""
    if rows.all():
        return chunk
    tokens = np.repeat(rows, chunk.lengths)
    offsets = np.zeros(int(rows.sum()) + 1, dtype=np.int64)
    np.cumsum(chunk.lengths[rows], out=offsets[1:])
    return Chunk(
        chunk.ids[tokens],
        chunk.trained[tokens],
        None if chunk.weights is None else chunk.weights[tokens],
        chunk.roles[tokens],
        offsets,
        chunk.answers[rows],
        chunk.straddling[tokens],
        chunk.whole[rows],
        chunk.stops[tokens],
    )
