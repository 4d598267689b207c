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

Shapes: T positions, K key-value heads, N documents of a group, L positions of its longest, Q rows of queries.
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
    """Queries `[start, end)` of the first `count` documents of a group; their keys are `[0, end)`."""

    start: int
    end: int
    count: int


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of [T * K] in another order: `index` names the row that each place holds, `pads` the places to ignore."""

    index: Tensor
    pads: Tensor


@dataclass(frozen=True, slots=True)
class Group:
    """Documents of similar length, longest first. `queries` holds a block after another, `keys` is [N, K, L]."""

    num_documents: int
    longest: int
    queries: Rows
    keys: Rows
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """Groups, and for each row of [T * K] its place among all groups' queries, and among all groups' keys."""

    groups: tuple[Group, ...]
    query_of_TK: Tensor
    key_of_TK: Tensor


class Documents:
    """Boundaries of a batch's documents over its T = B * L positions: int32 `[0, end of the first, ..., T]`."""

    def __init__(self, cu_seqlens: NDArray[np.int32]) -> None:
        self.cu_seqlens = cu_seqlens
        self._layouts: dict[tuple[int, torch.device], Layout] = {}
        self._bounds: dict[torch.device, Tensor] = {}

    @classmethod
    def rows(cls, num_rows: int, length: int) -> Documents:
        """One document a row."""
        return cls(np.arange(0, num_rows * length + 1, length, dtype=np.int32))

    @cached_property
    def longest(self) -> int:
        return int(np.diff(self.cu_seqlens).max())

    @cached_property
    def mean_keys(self) -> float:
        """Keys that a query sees, on average, without a window."""
        lengths = np.diff(self.cu_seqlens).astype(np.int64)
        return float((lengths * (lengths + 1)).sum() / (2 * lengths.sum()))

    def bounds(self, device: torch.device) -> Tensor:
        """`cu_seqlens` on the device, as the variable-length kernels take it."""
        if device not in self._bounds:
            self._bounds[device] = torch.from_numpy(self.cu_seqlens).to(device)
        return self._bounds[device]

    def layout(self, num_key_value_heads: int, device: torch.device) -> Layout:
        key = (num_key_value_heads, device)
        if key not in self._layouts:
            self._layouts[key] = lay_out(self.cu_seqlens, num_key_value_heads, device=device)
        return self._layouts[key]


def lay_out(cu_seqlens: NDArray[np.int32], num_key_value_heads: int, *, device: torch.device) -> Layout:
    """The layout of documents with these boundaries, for rows of the form [T * K]."""
    lengths = np.diff(cu_seqlens).astype(np.int64)
    groups = tuple(
        _group(cu_seqlens[members].astype(np.int64), lengths[members], num_key_value_heads, device=device)
        for members in _similar(lengths)
    )
    num_rows = int(cu_seqlens[-1]) * num_key_value_heads
    return Layout(
        groups,
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
    cuts, longest = [0], int(lengths[order[0]])
    for place, document in enumerate(order):
        if lengths[document] * GROUP_RATIO + GROUP_SLACK < longest:
            cuts.append(place)
            longest = int(lengths[document])
    return [order[start:end] for start, end in pairwise([*cuts, len(order)])]


def _group(starts_N: NDArray[np.int64], lengths_N: NDArray[np.int64], num_heads: int, *, device: torch.device) -> Group:
    longest = int(lengths_N[0])
    real_NL = np.arange(longest) < lengths_N[:, None]
    token_NL = starts_N[:, None] + np.where(real_NL, np.arange(longest), 0)
    row_NKL = token_NL[:, None, :] * num_heads + np.arange(num_heads)[:, None]
    real_NKL = np.broadcast_to(real_NL[:, None, :], row_NKL.shape)
    blocks = tuple(Block(start, end, int((lengths_N > start).sum())) for start, end in _cuts(longest))

    def rows(parts: Sequence[tuple[slice, ...]]) -> Rows:
        index, real = (np.concatenate([each[part].reshape(-1) for part in parts]) for each in (row_NKL, real_NKL))
        return Rows(torch.from_numpy(index).to(device), torch.from_numpy(np.flatnonzero(~real)).to(device))

    by_block = [(slice(block.count), slice(None), slice(block.start, block.end)) for block in blocks]
    return Group(len(lengths_N), longest, queries=rows(by_block), keys=rows([()]), blocks=blocks)


def _cuts(length: int) -> list[tuple[int, int]]:
    """Even blocks of about BLOCK_LENGTH: 100 -> 0..50..100, 66 -> 0..66, no sliver at the end."""
    size = BLOCK_LENGTH if length <= 16 * BLOCK_LENGTH else 2 * BLOCK_LENGTH
    number = max(1, round(length / size))
    edges = [-(-length * index // number) for index in range(number + 1)]
    return list(pairwise(edges))
