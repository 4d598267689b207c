"""Which bins each step of an epoch trains, on which rank, in which micro-batch: a pure function of a few values.

    bins of the data set -> companions redrawn -> order shuffled -> global batches -> dealt to ranks and micro-batches

Properties
- A plan follows from its arguments alone, so a resume stores (epoch, step) and asks for that step; nothing is
  replayed. `digest` proves that two plans give every rank the same batches.
- The documents of a global batch depend on world_size * batch_size * accumulation and not on the factors: global
  batches are cut first and dealt afterwards. `global_digest` proves that two plans agree up to the dealing, as those
  of a run that goes on with another number of ranks.
- Every bin is in exactly one step of an epoch; the last, smaller step is kept.
- Random keys are raw PCG64 words, whose stream numpy keeps across releases (NEP 19), sorted with their index below:
  the same order on every machine and version, which `Generator.permutation` does not promise.

Redrawing companions: packing sees lengths only, so documents of equal length may change places between bins without
changing any bin's length. Each epoch permutes them, which costs two sorts (20 ms for 200,000 documents) where packing
anew would cost more and change the number of steps.

Balance: attention costs the square of a document's length, so packed bins of equal length differ in cost. A step's
bins are dealt the costliest first to the least loaded rank with room (LPT, Graham 1969), a rank's bins in the same
way to its micro-batches, and every rank starts with its costliest. On log-normal documents, 8 ranks with 8 bins of
4,096 each, the busiest rank has 0.8 % more than the mean, where dealing in order gives it 42 %. A step is balanced
with what it has; no bin moves to another step.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from sftctl.engine.data.packing import BLOCK_ROWS, counts_of, stable_order
from sftctl.records import Bins

Integers = NDArray[np.int64]
Indices = NDArray[np.int32]

PLAN_VERSION = 1
"""Part of every digest: goes up when the same arguments begin to mean other batches."""

_ORDER_STREAM, _COMPANIONS_STREAM = 0, 1


class EpochPlan:
    """The batches of one epoch over `bins`, which packing made of the data that has this `fingerprint`.

    `batch_size` counts bins in a micro-batch, `accumulation` micro-batches in a rank's step. Indices that
    `micro_batches` gives are those of `plan.bins`: the bins of this epoch, their companions redrawn.
    `shuffle = False` keeps the order of the bins and deals neighbours: bins 0..5 on two ranks with batch_size 1 and
    accumulation 2 are steps 0 1 2 3 | 4 5, of which rank 0 gets 0, 2 | 4, none.
    """

    def __init__(
        self,
        bins: Bins,
        *,
        seed: int,
        epoch: int,
        fingerprint: str,
        batch_size: int,
        accumulation: int = 1,
        world_size: int = 1,
        shuffle: bool = True,
    ) -> None:
        assert min(batch_size, accumulation, world_size) >= 1, (batch_size, accumulation, world_size)
        assert seed >= 0 <= epoch, (seed, epoch)
        self.seed = seed
        self.epoch = epoch
        self.fingerprint = fingerprint
        self.batch_size = batch_size
        self.accumulation = accumulation
        self.world_size = world_size
        self.shuffle = shuffle
        self.bins = redraw_companions(bins, seed=seed, epoch=epoch) if shuffle else bins
        self.order = (
            permutation(len(bins), seed, epoch, _ORDER_STREAM) if shuffle else np.arange(len(bins), dtype=np.int32)
        )

    @property
    def global_batch_size(self) -> int:
        """Bins in a step, over all ranks and micro-batches."""
        return self.world_size * self.batch_size * self.accumulation

    @property
    def num_steps(self) -> int:
        """Optimiser steps in the epoch, the last, smaller one among them."""
        return -(-len(self.bins) // self.global_batch_size)

    def global_batch(self, step: int) -> Integers:
        """The bins of step `step`, 0 <= step < num_steps, in the epoch's order."""
        assert 0 <= step < self.num_steps, (step, self.num_steps)
        return self.order[step * self.global_batch_size : (step + 1) * self.global_batch_size].astype(np.int64)

    def micro_batches(self, step: int, rank: int) -> list[Integers]:
        """This rank's bins in step `step`: `accumulation` arrays of at most `batch_size` each.

        Only the last step of an epoch has arrays that are shorter or empty; `collate` makes of an empty one a
        batch that trains nothing, so that no rank waits for another.
        """
        assert 0 <= rank < self.world_size, (rank, self.world_size)
        members = self.global_batch(step)
        if not self.shuffle:
            return np.array_split(members, self.world_size * self.accumulation)[rank :: self.world_size]
        costs = self.costs_of(members)
        mine = balance(costs, self.world_size, room=self.batch_size * self.accumulation)[rank]
        parts = balance(costs[mine], self.accumulation, room=self.batch_size)
        parts.sort(key=lambda part: (-costs[mine[part]].sum(), -len(part)))
        return [members[mine[part]] for part in parts]

    def costs_of(self, members: Integers) -> Integers:
        """The sum of squared document lengths of these bins: what the attention of each costs, up to a factor."""
        first, end = self.bins.offsets[members], self.bins.offsets[members + 1]
        before = np.concatenate(([0], np.cumsum(end - first)))
        pieces = np.arange(before[-1]) + np.repeat(first - before[:-1], end - first)
        squares = np.concatenate(([0], np.cumsum(np.square(self.bins.length[pieces], dtype=np.int64))))
        return np.diff(squares[before])

    @cached_property
    def global_digest(self) -> str:
        """Hex SHA-256 of what the global batches are: equal for every dealing of the same ones."""
        facts = [PLAN_VERSION, self.fingerprint, self.seed, self.epoch, self.shuffle, self.global_batch_size]
        hashed = hashlib.sha256(json.dumps(facts).encode())
        bins = self.bins
        arrays: list[NDArray[np.signedinteger]] = [bins.sample, bins.start, bins.length, bins.offsets, self.order]
        for array, kind in zip(arrays, ("<i4", "<i4", "<i4", "<i8", "<i8"), strict=True):
            for begin in range(0, len(array), BLOCK_ROWS):
                hashed.update(np.ascontiguousarray(array[begin : begin + BLOCK_ROWS], dtype=kind).data)
        return hashed.hexdigest()

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of everything that decides which rank computes what, when."""
        facts = [self.global_digest, self.batch_size, self.accumulation, self.world_size]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def evaluation_plan(bins: Bins, *, fingerprint: str, batch_size: int, world_size: int = 1) -> EpochPlan:
    """Every bin once, in order; the same at each evaluation. Sums over it do not depend on the dealing."""
    return EpochPlan(
        bins, seed=0, epoch=0, fingerprint=fingerprint, batch_size=batch_size, world_size=world_size, shuffle=False
    )


def permutation(count: int, *entropy: int) -> Indices:
    """A permutation of `count` that follows from `entropy` alone, on every machine and numpy release.

    Each index gets a random word with the index in its low bits: no two are equal, so any sort gives one order.
    """
    bits = np.uint64(max(count - 1, 1).bit_length())
    keys = np.random.PCG64(np.random.SeedSequence(entropy)).random_raw(count)
    keys >>= bits
    keys <<= bits
    for begin in range(0, count, BLOCK_ROWS):
        keys[begin : begin + BLOCK_ROWS] |= np.arange(begin, min(count, begin + BLOCK_ROWS), dtype=np.uint64)
    keys.sort()
    keys &= (np.uint64(1) << bits) - np.uint64(1)
    return keys.astype(np.int32)


def redraw_companions(bins: Bins, *, seed: int, epoch: int) -> Bins:
    """The same bins, lengths and places, with the documents of each length permuted among its places.

    Lengths 4 3 | 4 3 of documents a b | c d become a d | c b, or any other of the four. Without companions
    (one document a bin) shuffling the bins is as good, and the bins stay as they are.
    """
    if len(bins) == len(bins.sample):
        return bins
    counts = counts_of(bins.length, int(bins.length.max(initial=0)) + 1)
    drawn = permutation(len(bins.sample), seed, epoch, _COMPANIONS_STREAM)
    source = drawn[stable_order(bins.length[drawn], counts)]
    place = stable_order(bins.length, counts)
    sample, start = np.empty_like(bins.sample), np.empty_like(bins.start)
    sample[place], start[place] = bins.sample[source], bins.start[source]
    return Bins(sample=sample, start=start, length=bins.length, offsets=bins.offsets)


def balance(costs: Integers, num_slots: int, *, room: int) -> list[Integers]:
    """Deal items to slots of at most `room`, the costliest first to the least loaded slot that has room.

    Costs 9 5 4 2 into two slots of two: items 0, 3 | 1, 2 with costs 9, 2 | 5, 4. Items of a slot rise.
    """
    assert len(costs) <= num_slots * room, (len(costs), num_slots, room)
    slots: list[list[int]] = [[] for _ in range(num_slots)]
    loads = [(0, slot) for slot in range(num_slots)]  # rising already, so a heap
    for item in np.argsort(-costs, kind="stable").tolist():
        load, slot = heappop(loads)
        slots[slot].append(item)
        if len(slots[slot]) < room:
            heappush(loads, (load + int(costs[item]), slot))
    return [np.array(sorted(slot), dtype=np.int64) for slot in slots]
