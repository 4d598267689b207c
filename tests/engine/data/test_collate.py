"""Collation against loops over single tokens, the matrices of the docstrings, and what no layout may change."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftctl.engine.data.collate import collate, shift
from sftctl.engine.data.packing import PACKERS, one_each, pack
from sftctl.engine.data.plan import EpochPlan
from sftctl.records import IGNORE_INDEX, Batch, Bins, Sample

PAD = 999


@dataclass
class Listed:
    """Samples in a list, given one by one."""

    rows: list[Sample]

    def sample(self, index: int, /) -> Sample:
        return self.rows[index]

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(row.input_ids) for row in self.rows], dtype=np.int32)


@dataclass
class Stored(Listed):
    """The same as one flat array with offsets, given in bulk, as a prepared store does. Counts its calls."""

    calls: list[str] = field(default_factory=list)

    def sample(self, index: int, /) -> Sample:
        self.calls.append("sample")
        return self.rows[index]

    def gather(self, sample: np.ndarray, start: np.ndarray, length: np.ndarray, /) -> Sample:
        self.calls.append("gather")
        begins = (np.cumsum(self.lengths) - self.lengths)[sample] + start
        index = np.concatenate([np.arange(b, b + n) for b, n in zip(begins, length, strict=True)] or [np.arange(0)])
        weights = [np.ones(len(r.input_ids), np.float32) if r.weights is None else r.weights for r in self.rows]
        weighted = any(self.rows[i].weights is not None for i in sample)
        return Sample(
            input_ids=np.concatenate([row.input_ids for row in self.rows])[index],
            labels=np.concatenate([row.labels for row in self.rows])[index],
            weights=np.concatenate(weights)[index] if weighted else None,
        )


def row(ids: list[int], trained: list[int] | None = None, weights: list[float] | None = None) -> Sample:
    """A sample of these ids, trained where `trained` is 1 (all, if none)."""
    mask = np.array([1] * len(ids) if trained is None else trained, dtype=bool)
    return Sample(
        input_ids=np.array(ids, dtype=np.int32),
        labels=np.where(mask, np.array(ids, dtype=np.int32), np.int32(IGNORE_INDEX)),
        weights=None if weights is None else np.array(weights, dtype=np.float32),
    )


@st.composite
def listed(draw: st.DrawFn) -> Listed:
    """Up to a dozen rows; token 1000 * row + position, so that each token says where it came from."""
    rows = []
    for number, length in enumerate(draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))):
        trained = draw(st.lists(st.integers(0, 1), min_size=length, max_size=length))
        weights = draw(st.none() | st.lists(st.sampled_from([0.25, 1.0, 3.0]), min_size=length, max_size=length))
        rows.append(row([1000 * number + t for t in range(1, length + 1)], trained, weights))
    return Listed(rows)


def bins_of(samples: Listed, strategy: str) -> Bins:
    return one_each(samples.lengths) if strategy == "none" else pack(samples.lengths, 8, strategy)


STRATEGY = st.sampled_from(["none", *sorted(PACKERS)])
MULTIPLE = st.none() | st.integers(1, 10)


@dataclass
class Slow:
    """A batch as nested lists, made a token at a time."""

    input_ids: list[list[int]]
    position_ids: list[list[int]]
    labels: list[list[int]]
    weights: list[list[float]]
    cu_seqlens: list[int]


def slow_collate(samples: Listed, bins: Bins, chosen: list[int], padding_free: bool, multiple: int | None) -> Slow:
    groups = [chosen] if padding_free or not chosen else [[k] for k in chosen]
    rows: list[list[tuple[int, int, int, float]]] = []
    lengths: list[list[int]] = []
    for group in groups:
        rows.append([])
        lengths.append([])
        for k in group:
            for p in range(bins.offsets[k], bins.offsets[k + 1]):
                sample = samples.rows[bins.sample[p]]
                first, last = int(bins.start[p]), int(bins.start[p] + bins.length[p]) - 1
                for t in range(first, last + 1):
                    label = int(sample.labels[t + 1]) if t < last else IGNORE_INDEX
                    weight = 0.0 if label == IGNORE_INDEX else 1.0 if sample.weights is None else sample.weights[t + 1]
                    rows[-1].append((int(sample.input_ids[t]), t - first, label, float(weight)))
                lengths[-1].append(last + 1 - first)
    width = max(1, *(len(r) for r in rows))
    while multiple and width % multiple:
        width += 1
    for r, documents in zip(rows, lengths, strict=True):
        if padding := width - len(r):
            r.extend((PAD, t, IGNORE_INDEX, 0.0) for t in range(padding))
            documents.append(padding)
    bounds = [0]
    for n in itertools.chain.from_iterable(lengths):
        bounds.append(bounds[-1] + n)
    columns = [[[token[column] for token in r] for r in rows] for column in range(4)]
    return Slow(*columns, cu_seqlens=bounds)  # type: ignore[arg-type]


def make(
    samples: Listed, bins: Bins, chosen: list[int], *, padding_free: bool, pad_to_multiple_of: int | None = None
) -> Batch:
    return collate(
        samples,
        bins,
        np.array(chosen, dtype=np.int64),
        padding_free=padding_free,
        pad_token_id=PAD,
        pad_to_multiple_of=pad_to_multiple_of,
    )


DOCUMENTS = Listed([row([10, 11, 12]), row([20]), row([30, 31])])
TWO_BINS = Bins(
    sample=np.array([0, 1, 2], np.int32),
    start=np.zeros(3, np.int32),
    length=np.array([3, 1, 2], np.int32),
    offsets=np.array([0, 2, 3]),
)


def test_flat_layout_worked_example() -> None:
    batch = make(DOCUMENTS, TWO_BINS, [0, 1], padding_free=True)
    assert batch.input_ids.tolist() == [[10, 11, 12, 20, 30, 31]]
    assert batch.labels.tolist() == [[11, 12, -100, -100, 31, -100]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 0, 1]]
    assert batch.cu_seqlens.tolist() == [0, 3, 4, 6]
    assert (batch.num_tokens, batch.num_supervised, batch.samples) == (6, 3, (0, 1, 2))
    assert batch.weights is None


def test_padded_layout_worked_example() -> None:
    batch = make(DOCUMENTS, TWO_BINS, [0, 1], padding_free=False)
    assert batch.input_ids.tolist() == [[10, 11, 12, 20], [30, 31, PAD, PAD]]
    assert batch.labels.tolist() == [[11, 12, -100, -100], [31, -100, -100, -100]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0], [0, 1, 0, 1]]
    assert batch.cu_seqlens.tolist() == [0, 3, 4, 6, 8]
    assert (batch.num_tokens, batch.num_supervised) == (6, 3)


@pytest.mark.parametrize("padding_free", [True, False])
def test_pad_to_multiple_of_adds_one_document_of_padding(padding_free: bool) -> None:
    batch = make(DOCUMENTS, TWO_BINS, [1], padding_free=padding_free, pad_to_multiple_of=8)
    assert batch.input_ids.tolist() == [[30, 31, *[PAD] * 6]]
    assert batch.labels.tolist() == [[31, *[-100] * 7]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 2, 3, 4, 5]]
    assert batch.cu_seqlens.tolist() == [0, 2, 8]


@pytest.mark.parametrize("padding_free", [True, False])
@pytest.mark.parametrize(("multiple", "width"), [(None, 1), (16, 16)])
def test_no_bins_make_a_batch_that_trains_nothing(padding_free: bool, multiple: int | None, width: int) -> None:
    batch = make(DOCUMENTS, TWO_BINS, [], padding_free=padding_free, pad_to_multiple_of=multiple)
    assert batch.input_ids.tolist() == [[PAD] * width]
    assert batch.labels.tolist() == [[IGNORE_INDEX] * width]
    assert batch.position_ids.tolist() == [list(range(width))]
    assert batch.cu_seqlens.tolist() == [0, width]
    assert (batch.num_tokens, batch.num_supervised, batch.samples) == (0, 0, ())


def test_weights_move_with_the_labels() -> None:
    samples = Listed([row([10, 11, 12], [0, 1, 1], [9.0, 2.0, 3.0]), row([20, 21])])
    batch = make(samples, pack(samples.lengths, 5, "bfd"), [0], padding_free=True, pad_to_multiple_of=6)
    assert batch.labels.tolist() == [[11, 12, -100, 21, -100, -100]]
    assert batch.weights is not None
    assert batch.weights.tolist() == [[2.0, 3.0, 0.0, 1.0, 0.0, 0.0]]


def test_a_piece_in_the_middle_of_a_row_starts_anew() -> None:
    """Positions restart at the cut, and its first token is no target of the piece before."""
    samples = Listed([row([10, 11, 12, 13, 14])])
    batch = make(samples, pack(samples.lengths, 3, "wrapped"), [0, 1], padding_free=True)
    assert batch.input_ids.tolist() == [[10, 11, 12, 13, 14]]
    assert batch.labels.tolist() == [[11, 12, -100, 14, -100]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.samples == (0,)


def test_shift_worked_example() -> None:
    labels, weights = shift(np.array([1, 2, 3, 4, 5], np.int32), np.arange(5, dtype=np.float32), np.array([3, 5]))
    assert labels.tolist() == [2, 3, -100, 5, -100]
    assert weights is not None
    assert weights.tolist() == [1, 2, 0, 4, 0]


@given(listed(), STRATEGY, st.booleans(), MULTIPLE, st.randoms(use_true_random=False))
def test_same_batch_as_the_slow_collation(
    samples: Listed, strategy: str, padding_free: bool, multiple: int | None, random: object
) -> None:
    """Every array equals the one made a token at a time, for any bins in any order."""
    bins = bins_of(samples, strategy)
    chosen = random.sample(range(len(bins)), random.randint(0, len(bins)))  # type: ignore[attr-defined]
    batch = make(samples, bins, chosen, padding_free=padding_free, pad_to_multiple_of=multiple)
    slow = slow_collate(samples, bins, chosen, padding_free, multiple)
    assert batch.input_ids.tolist() == slow.input_ids
    assert batch.position_ids.tolist() == slow.position_ids
    assert batch.labels.tolist() == slow.labels
    assert batch.cu_seqlens.tolist() == slow.cu_seqlens
    pieces = [p for k in chosen for p in range(bins.offsets[k], bins.offsets[k + 1])]
    if any(samples.rows[bins.sample[p]].weights is not None for p in pieces):
        assert batch.weights is not None
        assert batch.weights.tolist() == slow.weights
    else:
        assert batch.weights is None
    assert batch.num_supervised == sum(label != IGNORE_INDEX for r in slow.labels for label in r)
    assert batch.num_tokens == sum(bins.length[p] for p in pieces)
    assert sorted(batch.samples) == sorted({int(bins.sample[p]) for p in pieces})


@given(listed(), STRATEGY, st.booleans())
def test_in_bulk_gives_the_same_batch(samples: Listed, strategy: str, padding_free: bool) -> None:
    """One `gather` call instead of a call for each document changes nothing."""
    bins = bins_of(samples, strategy)
    chosen = list(range(len(bins)))
    stored = Stored(samples.rows)
    one, two = (make(each, bins, chosen, padding_free=padding_free) for each in (samples, stored))
    assert stored.calls == ["gather"]
    for name in ("input_ids", "position_ids", "labels", "cu_seqlens", "weights"):
        assert np.array_equal(getattr(one, name), getattr(two, name)), name
    assert one.num_supervised == two.num_supervised


def test_arrays_have_the_types_of_the_record() -> None:
    samples = Listed([row([1, 2, 3], weights=[1, 1, 1])])
    for chosen in ([0], []):
        batch = make(samples, one_each(samples.lengths), chosen, padding_free=True)
        assert [batch.input_ids.dtype, batch.position_ids.dtype, batch.labels.dtype] == [np.int64] * 3
        assert batch.cu_seqlens.dtype == np.int32
    weights = make(samples, one_each(samples.lengths), [0], padding_free=True).weights
    assert weights is not None
    assert weights.dtype == np.float32


def test_a_batch_does_not_share_memory_with_the_samples() -> None:
    """Writing into a batch must not change what the next epoch reads."""
    samples = Listed([row([1, 2, 3], weights=[1, 2, 3])])
    batch = make(samples, one_each(samples.lengths), [0], padding_free=True)
    for array in (batch.input_ids, batch.labels, batch.weights):
        assert array is not None
        array[:] = 0
    assert samples.rows[0].input_ids.tolist() == samples.rows[0].labels.tolist() == [1, 2, 3]
    assert samples.rows[0].weights is not None
    assert samples.rows[0].weights.tolist() == [1, 2, 3]


def targets_of(batch: Batch) -> Counter[tuple[int, int, float]]:
    """(token, its target, weight) of each supervised position."""
    weights = np.where(batch.labels != IGNORE_INDEX, 1.0, 0.0) if batch.weights is None else batch.weights
    flat = zip(batch.input_ids.ravel().tolist(), batch.labels.ravel().tolist(), weights.ravel().tolist(), strict=True)
    return Counter(position for position in flat if position[1] != IGNORE_INDEX)


@given(
    listed(),
    STRATEGY,
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    st.booleans(),
    MULTIPLE,
    st.integers(0, 3),
)
def test_an_epoch_trains_every_token_once(
    samples: Listed, strategy: str, cut: tuple[int, int, int], padding_free: bool, multiple: int | None, epoch: int
) -> None:
    """Over all steps, ranks and micro-batches of an epoch, the tokens and targets are those of the rows, each once."""
    bins = bins_of(samples, strategy)
    world_size, batch_size, accumulation = cut
    plan = EpochPlan(
        bins,
        seed=3,
        epoch=epoch,
        fingerprint="",
        batch_size=batch_size,
        accumulation=accumulation,
        world_size=world_size,
    )
    tokens: Counter[int] = Counter()
    targets: Counter[tuple[int, int, float]] = Counter()
    num_tokens = num_supervised = 0
    for step in range(plan.num_steps):
        for rank in range(world_size):
            for chosen in plan.micro_batches(step, rank):
                batch = make(
                    samples, plan.bins, chosen.tolist(), padding_free=padding_free, pad_to_multiple_of=multiple
                )
                tokens.update(batch.input_ids[batch.input_ids != PAD].tolist())
                targets.update(targets_of(batch))
                num_tokens += batch.num_tokens
                num_supervised += batch.num_supervised
    kept = [(int(i), int(s), int(s + n)) for i, s, n in zip(bins.sample, bins.start, bins.length, strict=True)]
    assert tokens == Counter(int(t) for i, first, end in kept for t in samples.rows[i].input_ids[first:end])
    assert targets == Counter(
        (int(each.input_ids[t - 1]), int(each.labels[t]), 1.0 if each.weights is None else float(each.weights[t]))
        for i, first, end in kept
        for each in [samples.rows[i]]
        for t in range(first + 1, end)
        if each.labels[t] != IGNORE_INDEX
    )
    assert (num_tokens, num_supervised) == (tokens.total(), targets.total())
