"""Bins to a Batch: the tokens are fetched, labels shifted, documents bounded, rows padded. Once each, here.

Shapes: D documents (pieces of samples), S tokens without padding, B rows, L positions a row, T = B * L.

Properties
- Labels are shifted once, here: position t carries the token after it. The last token of a document has no target
  and its first is no target of the document before, so nothing leaks over a boundary; weights move with the labels.
- Padding is a document of its own, one at the end of each row that needs it, so isolation needs no attention mask.
- Two layouts of the same documents. Flat (`padding_free`): one row of all of them. Padded: a row for each bin, as
  long as the longest. The supervised tokens, their targets and weights are the same in both.
- A flat layout may keep once what its documents begin with in common (`share_prefix`, see `prefixes`). Counts stay
  those of the documents.
- No bins, as a rank may have at the end of an epoch: one document of padding, nothing supervised. The rank runs its
  forward and backward with the others instead of leaving them waiting.

Cost: a handful of passes over S tokens of numpy's own loops. Documents are fetched in one call where the samples
offer `gather`, else one by one. An int64 batch takes 24 bytes a token, and 4 more where tokens have weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sftctl.engine.data.prefixes import share_prefixes
from sftctl.records import IGNORE_INDEX, Batch, Bins, Sample

Integers = NDArray[np.int64]


class Samples(Protocol):
    """Tokenised rows by their index."""

    def sample(self, index: int, /) -> Sample: ...


@runtime_checkable
class SamplesInBulk(Samples, Protocol):
    """Samples that give many pieces in one call, each [D]: document d is `sample[d][start[d] : start[d] + length[d]]`.

    The result is one Sample of S tokens, the documents one after the other, labels not shifted.
    """

    def gather(self, sample: NDArray[np.int32], start: NDArray[np.int32], length: NDArray[np.int32], /) -> Sample: ...


def collate(
    samples: Samples,
    bins: Bins,
    bin_indices: Integers | Sequence[int],
    *,
    padding_free: bool,
    pad_token_id: int,
    pad_to_multiple_of: int | None = None,
    share_prefix: bool = False,
) -> Batch:
    """A micro-batch of the bins `bin_indices`, in their order, each with its documents in theirs.

    Bin 0 holds documents of 3 and 1 tokens, bin 1 one of 2; every token but the first of a document trains.
    Tokens are written as document and number, `.` is padding, `-` is no target:

        flat         input_ids     a0 a1 a2 b0 c0 c1       cu_seqlens  0 3 4 6
                     labels        a1 a2 -  -  c1 -
                     position_ids  0  1  2  0  0  1

        padded       input_ids     a0 a1 a2 b0             cu_seqlens  0 3 4 6 8
                                   c0 c1 .  .
                     labels        a1 a2 -  -
                                   c1 -  -  -
                     position_ids  0  1  2  0
                                   0  1  0  1

    `pad_to_multiple_of` lengthens the rows, of either layout. No bins: `pad_to_multiple_of` or one token of padding.
    `num_tokens` counts S, without padding. With `share_prefix` what several documents begin with and do not train on
    stands once in a flat layout: boundaries are then those of prefixes and of what is left of the documents.
    """
    piece, pieces_B = _pieces(bins, np.asarray(bin_indices, dtype=np.int64))
    if padding_free or not len(pieces_B):
        pieces_B = np.array([len(piece)])
    sample, start, length = bins.sample[piece], bins.start[piece], bins.length[piece]
    documents = gather(samples, sample, start, length)
    edges = np.concatenate(([0], np.cumsum(length, dtype=np.int64)))
    laid = _Laid(documents.input_ids, *shift(documents.labels, documents.weights, edges[1:]), length)
    if share_prefix and len(pieces_B) == 1:
        laid = _sharing_prefixes(laid, edges)
        pieces_B, edges = np.array([len(laid.length)]), np.array([0, *np.cumsum(laid.length)])
    tokens_B = np.diff(edges[np.concatenate(([0], np.cumsum(pieces_B)))])
    width = _round_up(max(1, int(tokens_B.max())), pad_to_multiple_of or 1)
    bounds = _boundaries(laid.length, pieces_B, width - tokens_B)
    continues = laid.continues
    if continues is not None:
        continues = np.append(continues, np.full(len(bounds) - 1 - len(continues), -1, dtype=np.int32))
    return Batch(
        input_ids=_rows(laid.input_ids.astype(np.int64), tokens_B, width, fill=pad_token_id),
        position_ids=_positions(bounds, continues).reshape(len(tokens_B), width),
        labels=_rows(laid.labels, tokens_B, width, fill=IGNORE_INDEX),
        cu_seqlens=bounds.astype(np.int32),
        weights=None if laid.weights is None else _rows(laid.weights, tokens_B, width, fill=0.0),
        num_tokens=len(documents.input_ids),
        num_supervised=int(np.count_nonzero(laid.labels != IGNORE_INDEX)),
        samples=tuple(dict.fromkeys(sample.tolist())),
        row_tokens=tokens_B if len(laid.labels) < width * len(tokens_B) else None,
        continues=continues,
    )


def gather(samples: Samples, sample: NDArray[np.int32], start: NDArray[np.int32], length: NDArray[np.int32]) -> Sample:
    """The pieces, one after the other, as one Sample [S]. A sample without weights among others with some weighs 1."""
    if isinstance(samples, SamplesInBulk):
        return samples.gather(sample, start, length)
    spans = zip(sample.tolist(), start.tolist(), length.tolist(), strict=True)
    parts = [_cut(samples.sample(index), slice(first, first + count)) for index, first, count in spans]
    weighted = any(part.weights is not None for part in parts)
    return Sample(
        input_ids=_join([part.input_ids for part in parts], np.int32),
        labels=_join([part.labels for part in parts], np.int32),
        weights=_join([_weights(part) for part in parts], np.float32) if weighted else None,
    )


def shift(
    labels: NDArray[np.int32], weights: NDArray[np.float32] | None, ends: Integers
) -> tuple[Integers, NDArray[np.float32] | None]:
    """Each position's target and its weight, for documents that end before `ends`; the last of each has none.

    Labels a0 a1 a2 b0 b1 with ends 3 5 become a1 a2 - b1 -: neither a0 nor b0 is anyone's target. Weight 0 where
    there is no target.
    """
    targets = np.empty(len(labels), dtype=np.int64)
    targets[:-1] = labels[1:]
    targets[ends - 1] = IGNORE_INDEX
    if weights is None:
        return targets, None
    moved = np.zeros_like(weights)
    moved[:-1] = weights[1:]
    moved[targets == IGNORE_INDEX] = 0.0
    return targets, moved


@dataclass(frozen=True, slots=True)
class _Laid:
    """Tokens one after the other, and the lengths of the documents (or pieces of them) that they make up."""

    input_ids: NDArray[np.int32]
    labels: Integers
    weights: NDArray[np.float32] | None
    length: NDArray[np.int32]
    continues: NDArray[np.int32] | None = None


def _sharing_prefixes(laid: _Laid, edges: Integers) -> _Laid:
    pieces = share_prefixes(laid.input_ids, laid.labels, edges)
    if pieces is None:
        return laid
    kept = pieces.kept
    weights = None if laid.weights is None else laid.weights[kept]
    return _Laid(laid.input_ids[kept], laid.labels[kept], weights, pieces.length, pieces.continues)


def _pieces(bins: Bins, bin_indices: Integers) -> tuple[Integers, Integers]:
    """The pieces of the bins one after the other [D], and how many each bin has."""
    first = bins.offsets[bin_indices]
    count = bins.offsets[bin_indices + 1] - first
    return np.arange(count.sum()) + np.repeat(first - np.cumsum(count) + count, count), count


def _boundaries(length: NDArray[np.int32], pieces_B: Integers, padding_B: Integers) -> Integers:
    """Document boundaries over T positions, a row's padding a document after its own [D + rows with padding + 1].

    Documents of 3 and 1 tokens, then 2, in rows of 4: padding 0 and 2, boundaries 0 3 4 6 8.
    """
    padded = padding_B > 0
    if padded.any():
        length = np.insert(length, np.cumsum(pieces_B)[padded], padding_B[padded])
    return np.concatenate(([0], np.cumsum(length, dtype=np.int64)))


def _positions(bounds: Integers, continues: NDArray[np.int32] | None = None) -> Integers:
    """Positions from 0 in each document: boundaries 0 3 5 give 0 1 2 0 1, or 0 1 2 3 4 if the second continues it."""
    length = np.diff(bounds)
    origins = bounds[:-1]
    if continues is not None:
        origins = origins - np.where(continues < 0, 0, length[continues])
    positions = np.arange(bounds[-1])
    positions -= np.repeat(origins, length)
    return positions


def _rows(values: NDArray[Any], tokens_B: Integers, width: int, *, fill: float) -> NDArray[Any]:
    """S values as B rows of `width`, each filled up at its end."""
    if int(tokens_B.min()) == width:
        return values.reshape(len(tokens_B), width)
    rows = np.full((len(tokens_B), width), fill, dtype=values.dtype)
    rows[np.arange(width) < tokens_B[:, None]] = values
    return rows


def _cut(sample: Sample, span: slice) -> Sample:
    weights = None if sample.weights is None else sample.weights[span]
    return Sample(input_ids=sample.input_ids[span], labels=sample.labels[span], weights=weights)


def _weights(sample: Sample) -> NDArray[np.float32]:
    return np.ones(len(sample.input_ids), dtype=np.float32) if sample.weights is None else sample.weights


def _join(arrays: list[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    return np.concatenate(arrays, dtype=dtype) if arrays else np.empty(0, dtype=dtype)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
