"""Where the documents of a batch lie, and how they are laid out for batched products.

`Documents` is made once a batch and travels through the model's forward to every attention layer; what depends
on the layer (its number of key-value heads) is worked out at its first use and kept.

`Layout` turns a flat row of documents of different lengths into a few dense blocks. Documents of similar length
form a group, padded to its longest at the end, so that one causal mask serves all: a padded key comes after every
real query, and padded queries are not read back. Longest first, the documents that reach into a block of
queries are a prefix of the group, so padding costs copies but hardly any products.

    documents a a a | b b      one group (and one key-value head)
    gather    0 1 2 3 4 3      row 5 is a pad: it repeats b's first token
    blocks    of two queries: 0..1 of a and b, keys 0..1; then 2 of a alone, keys 0..2
    inverse   0 1 2 3 4

Shapes: T positions, K key-value heads, N documents of a group, L positions of its longest.
"""

from __future__ import annotations

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
class Group:
    """Documents of similar length, longest first. `gather_NKL` and `pads` are flat indices, int64."""

    num_documents: int
    longest: int
    gather_NKL: Tensor
    pads: Tensor
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """Groups, and for each row of [T * K] its place in the groups' rows, one group after the other."""

    groups: tuple[Group, ...]
    inverse_TK: Tensor


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
    inverse_TK = np.empty((int(cu_seqlens[-1]), num_key_value_heads), np.int64)
    groups = []
    base = 0
    for members in _similar(lengths):
        group, gather = _group(members, cu_seqlens, lengths, num_key_value_heads, device=device)
        real = np.ones(gather.size, bool)
        real[group.pads.cpu().numpy()] = False
        inverse_TK.reshape(-1)[gather[real]] = base + np.flatnonzero(real)
        groups.append(group)
        base += gather.size
    return Layout(tuple(groups), torch.from_numpy(inverse_TK.reshape(-1)).to(device))


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


def _group(
    members: NDArray[np.int64],
    cu_seqlens: NDArray[np.int32],
    lengths: NDArray[np.int64],
    num_heads: int,
    *,
    device: torch.device,
) -> tuple[Group, NDArray[np.int64]]:
    longest = int(lengths[members[0]])
    starts_N, lengths_N = cu_seqlens[members].astype(np.int64), lengths[members]
    place_L = np.arange(longest)
    real_NL = place_L < lengths_N[:, None]
    token_NL = starts_N[:, None] + np.where(real_NL, place_L, 0)
    gather_NKL = token_NL[:, None, :] * num_heads + np.arange(num_heads)[:, None]
    pads = np.flatnonzero(~np.repeat(real_NL[:, None, :], num_heads, axis=1))
    blocks = tuple(Block(start, end, int((lengths_N > start).sum())) for start, end in _cuts(longest))
    gather = gather_NKL.reshape(-1)
    group = Group(len(members), longest, torch.from_numpy(gather).to(device), torch.from_numpy(pads).to(device), blocks)
    return group, gather


def _cuts(length: int) -> list[tuple[int, int]]:
    """Even blocks of about BLOCK_LENGTH: 100 -> 0..50..100, 66 -> 0..66, no sliver at the end."""
    size = BLOCK_LENGTH if length <= 16 * BLOCK_LENGTH else 2 * BLOCK_LENGTH
    number = max(1, round(length / size))
    edges = [-(-length * index // number) for index in range(number + 1)]
    return list(pairwise(edges))
