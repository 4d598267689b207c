"""Where the documents of a batch lie, and how they are laid out for batched products.

`Documents` is made once a batch and travels through the model's forward to every attention layer; what depends
on the layer (its number of key-value heads) is worked out at its first use and kept.

`Layout` turns a flat row of documents of different lengths into a few dense blocks. Documents of similar length
form a group, padded to its longest at the end, so that one causal mask serves all: a padded key comes after every
real query, and padded queries are not read back. Longest first, the documents that reach into a block of
queries are a prefix of the group, so padding costs copies but hardly any products.

Queries lie block after block, so that a block's are contiguous, as products want them (a slice would be copied for
each); keys, which several blocks read from, lie document after document.

    documents a a a | b b      one group (and one key-value head)
    blocks    of two queries: 0..1 of a and b, keys 0..1; then 2 of a alone, keys 0..2
    queries   0 1 3 4 2        which position each row holds
    keys      0 1 2 3 4 3      row 5 is a pad: it repeats b's first token

A document may go on from another one, a prefix that it shares with others (`Batch.continues`): its queries are its
own, its keys those of the prefix and then its own. Such documents form groups by their prefix.

    prefix p p, then a a and b      group of p, and one of a and b that continue it
    queries of the second  2 4 3    (blocks of one query)
    keys of the second     0 1 2 3 0 1 4 4      the last is a pad, and of the places 0 and 1 all are copies

Shapes: T positions, K key-value heads, N documents of a group, P tokens of their prefix, L positions of the longest
of what is their own, Q rows of queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK_LENGTH = 64
"""Queries a product takes at a time. Smaller skips more of the masked half; larger makes fewer calls."""

GROUP_RATIO, GROUP_SLACK = 1.3, 16
"""A document joins a group whose longest is at most this factor times it, and this many tokens, longer."""


@dataclass(frozen=True, slots=True)
class Block:
    """Queries `[start, end)` of the first `count` documents of a group; their keys are `[0, before + end)`."""

    start: int
    end: int
    count: int
    before: int = 0


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of [T * K] in another order: `index` names the row that each place holds, `pads` the places to ignore:
    padding, and copies of a prefix."""

    index: Tensor
    pads: Tensor


@dataclass(frozen=True, slots=True)
class Group:
    """Documents of similar length, longest first. `queries` holds a block after another, `keys` is [N, K, P + L].

    `prefix`: the positions of what all of them continue.
    """

    num_documents: int
    longest: int
    queries: Rows
    keys: Rows
    blocks: tuple[Block, ...]
    prefix: slice


@dataclass(frozen=True, slots=True)
class Layout:
    """Groups, and for each row of [T * K] its place among all groups' queries, and among all groups' keys."""

    groups: tuple[Group, ...]
    query_of_TK: Tensor
    key_of_TK: Tensor


class Documents:
    """Boundaries of a batch's documents over its T = B * L positions: int32 `[0, end of the first, ..., T]`.

    `continues`: the document that each goes on from, or -1; None where none does.
    """

    def __init__(self, cu_seqlens: NDArray[np.int32], continues: NDArray[np.int32] | None = None) -> None:
        self.cu_seqlens = cu_seqlens
        self.continues = continues
        self._layouts: dict[tuple[int, torch.device], Layout] = {}
        self._on_device: dict[torch.device, tuple[Tensor, Tensor, Tensor | None]] = {}

    @classmethod
    def rows(cls, num_rows: int, length: int) -> Documents:
        """One document a row."""
        return cls(np.arange(0, num_rows * length + 1, length, dtype=np.int32))

    @cached_property
    def prefix_lengths(self) -> NDArray[np.int64]:
        """Tokens before each document's own."""
        lengths = np.diff(self.cu_seqlens).astype(np.int64)
        return np.zeros_like(lengths) if self.continues is None else _before(lengths, self.continues)

    @cached_property
    def longest(self) -> int:
        """Of the documents' own tokens."""
        return int(np.diff(self.cu_seqlens).max())

    @cached_property
    def most_keys(self) -> int:
        """That a document has, with its prefix."""
        return int((np.diff(self.cu_seqlens) + self.prefix_lengths).max())

    @cached_property
    def mean_keys(self) -> float:
        """Keys that a query sees, on average, without a window."""
        lengths = np.diff(self.cu_seqlens).astype(np.int64)
        return float((lengths * (lengths + 1 + 2 * self.prefix_lengths)).sum() / (2 * lengths.sum()))

    def bounds(self, device: torch.device) -> Tensor:
        """`cu_seqlens` on the device, as the variable-length kernels take it."""
        return self._tensors(device)[0]

    def key_bounds(self, device: torch.device) -> Tensor:
        """The same of the documents' keys, those of their prefixes included."""
        return self._tensors(device)[1]

    def key_positions(self, device: torch.device) -> Tensor | None:
        """The position of each of these keys; None where they are the T positions in their order."""
        return self._tensors(device)[2]

    def _tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
        if device not in self._on_device:
            bounds = torch.from_numpy(self.cu_seqlens).to(device)
            if self.continues is None:
                self._on_device[device] = bounds, bounds, None
            else:
                key_bounds, positions = _keys_of(self.cu_seqlens, self.continues)
                self._on_device[device] = (
                    bounds, torch.from_numpy(key_bounds).to(device), torch.from_numpy(positions).to(device)
                )  # fmt: skip
        return self._on_device[device]

    def layout(self, num_key_value_heads: int, device: torch.device) -> Layout:
        key = (num_key_value_heads, device)
        if key not in self._layouts:
            self._layouts[key] = lay_out(self.cu_seqlens, num_key_value_heads, continues=self.continues, device=device)
        return self._layouts[key]


def _before(lengths: NDArray[np.int64], continues: NDArray[np.int32]) -> NDArray[np.int64]:
    return np.where(continues < 0, 0, lengths[continues])


def _keys_of(
    cu_seqlens: NDArray[np.int32], continues: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Boundaries and positions of the documents' keys.

    Boundaries 0 2 4 5 where the second and the third continue the first: 0 2 6 9, and 0 1 | 0 1 2 3 | 0 1 4.
    """
    spans = [(start, end) for start, end in pairwise(cu_seqlens.tolist())]
    parts = []
    for (start, end), prefix in zip(spans, continues.tolist(), strict=True):
        own = np.arange(start, end)
        parts.append(own if prefix < 0 else np.concatenate((np.arange(*spans[prefix]), own)))
    bounds = np.cumsum([0, *map(len, parts)]).astype(np.int32)
    return bounds, np.concatenate(parts)


def lay_out(
    cu_seqlens: NDArray[np.int32],
    num_key_value_heads: int,
    *,
    continues: NDArray[np.int32] | None = None,
    device: torch.device,
) -> Layout:
    """The layout of documents with these boundaries, for rows of the form [T * K]."""
    starts, lengths = cu_seqlens[:-1].astype(np.int64), np.diff(cu_seqlens).astype(np.int64)
    if continues is None:
        continues = np.full(len(lengths), -1, dtype=np.int32)
    groups = []
    for number in np.unique(continues).tolist():
        prefix = slice(0, 0) if number < 0 else slice(int(starts[number]), int(starts[number] + lengths[number]))
        mine = np.flatnonzero(continues == number)
        for chosen in _similar(lengths[mine]):
            members = mine[chosen]
            groups.append(_group(starts[members], lengths[members], num_key_value_heads, prefix=prefix, device=device))
    num_rows = int(cu_seqlens[-1]) * num_key_value_heads
    return Layout(
        tuple(groups),
        query_of_TK=_inverse([group.queries for group in groups], num_rows),
        key_of_TK=_inverse([group.keys for group in groups], num_rows),
    )


def _inverse(parts: list[Rows], num_rows: int) -> Tensor:
    """Where each of `num_rows` lies among the parts, one after the other."""
    index = torch.cat([part.index for part in parts])
    real = torch.ones_like(index, dtype=torch.bool)
    base = 0
    for part in parts:
        real[base + part.pads] = False
        base += len(part.index)
    inverse = torch.empty(num_rows, dtype=torch.int64, device=index.device)
    inverse[index[real]] = torch.arange(len(index), device=index.device)[real]
    return inverse


def _similar(lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Document numbers in groups of similar length, longest first; documents without tokens are left out."""
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] > 0]
    if not len(order):
        return []
    cuts, longest = [0], int(lengths[order[0]])
    for place, document in enumerate(order):
        if lengths[document] * GROUP_RATIO + GROUP_SLACK < longest:
            cuts.append(place)
            longest = int(lengths[document])
    return [order[start:end] for start, end in pairwise([*cuts, len(order)])]


def _group(
    starts_N: NDArray[np.int64],
    lengths_N: NDArray[np.int64],
    num_heads: int,
    *,
    prefix: slice,
    device: torch.device,
) -> Group:
    longest, before = int(lengths_N[0]), prefix.stop - prefix.start
    real_NL = np.arange(longest) < lengths_N[:, None]
    token_NL = starts_N[:, None] + np.where(real_NL, np.arange(longest), 0)
    copies_NP = np.broadcast_to(np.arange(prefix.start, prefix.stop), (len(starts_N), before))
    blocks = tuple(Block(start, end, int((lengths_N > start).sum()), before) for start, end in _cuts(longest))
    by_block = [(slice(block.count), slice(block.start, block.end)) for block in blocks]
    return Group(
        len(lengths_N),
        longest,
        queries=_by_head([(token_NL[part], real_NL[part]) for part in by_block], num_heads, device=device),
        keys=_by_head(
            [(np.hstack([copies_NP, token_NL]), np.hstack([np.zeros_like(copies_NP, dtype=np.bool_), real_NL]))],
            num_heads,
            device=device,
        ),
        blocks=blocks,
        prefix=prefix,
    )


def _by_head(
    parts: Sequence[tuple[NDArray[np.int64], NDArray[np.bool_]]], num_heads: int, *, device: torch.device
) -> Rows:
    """Tokens [N, L], each part for itself, as rows [N, K, L], one part after the other."""
    rows = [token_NL[:, None, :] * num_heads + np.arange(num_heads)[:, None] for token_NL, _ in parts]
    reals = [np.broadcast_to(real_NL[:, None, :], row.shape) for (_, real_NL), row in zip(parts, rows, strict=True)]
    index, real = (np.concatenate([each.reshape(-1) for each in of]) for of in (rows, reals))
    return Rows(torch.from_numpy(index).to(device), torch.from_numpy(np.flatnonzero(~real)).to(device))


def _cuts(length: int) -> list[tuple[int, int]]:
    """Even blocks of about BLOCK_LENGTH: 100 -> 0..50..100, 66 -> 0..66, no sliver at the end."""
    size = BLOCK_LENGTH if length <= 16 * BLOCK_LENGTH else 2 * BLOCK_LENGTH
    number = max(1, round(length / size))
    edges = [-(-length * index // number) for index in range(number + 1)]
    return list(pairwise(edges))
