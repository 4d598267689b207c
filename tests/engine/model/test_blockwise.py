"""Blockwise attention against the whole matrix of scores, in float64: outputs and all gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sftctl.engine.model import blockwise
from sftctl.engine.model.blockwise import Scores, blockwise_attention
from sftctl.engine.model.documents import Documents


def whole(
    query: Tensor, key: Tensor, value: Tensor, lengths: list[int], scores: Scores, sinks: Tensor | None
) -> Tensor:
    """Attention [T, H, V] from all T * T scores and one mask: slow, and plain to see."""
    T, H, _ = query.shape
    key, value = (tensor.repeat_interleave(H // tensor.shape[1], dim=1) for tensor in (key, value))
    logits = torch.einsum("qhd,khd->hqk", query, key) * scores.scale
    if scores.softcap is not None:
        logits = scores.softcap * torch.tanh(logits / scores.softcap)
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place = torch.arange(T)
    seen = (document[:, None] == document) & (place <= place[:, None])
    if scores.window is not None:
        seen &= place > place[:, None] - scores.window
    logits = logits.masked_fill(~seen, -math.inf)
    if sinks is not None:
        logits = torch.cat([logits, sinks[:, None, None].expand(H, T, 1)], dim=-1)
    return torch.einsum("hqk,khd->qhd", logits.softmax(-1)[..., :T], value)


def inputs(lengths: list[int], heads: tuple[int, int], sizes: tuple[int, int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    T, (H, K), (D, V) = sum(lengths), heads, sizes
    shapes = (T, H, D), (T, K, D), (T, K, V), (H,)
    return [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]


def documents(lengths: list[int], continues: list[int] | None = None) -> Documents:
    bounds = np.cumsum([0, *lengths]).astype(np.int32)
    return Documents(bounds, None if continues is None else np.array(continues, np.int32))


def with_gradients(out: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).bfloat16()
    return [out, *torch.autograd.grad(out, tensors, probe.to(out.dtype))]


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=5),
    heads=st.sampled_from([(4, 2), (3, 3), (4, 1)]),
    sizes=st.sampled_from([(4, 4), (6, 2)]),
    softcap=st.sampled_from([None, 1.5]),
    window=st.sampled_from([None, 1, 5, 70, 1000]),
    sunk=st.booleans(),
    keep=st.booleans(),
)
def test_outputs_and_gradients_are_those_of_the_whole_matrix(
    lengths: list[int],
    heads: tuple[int, int],
    sizes: tuple[int, int],
    softcap: float | None,
    window: int | None,
    sunk: bool,
    keep: bool,
) -> None:
    """Whatever the lengths, heads, sizes, cap, window and sinks, with probabilities kept or made again."""
    query, key, value, sinks = inputs(lengths, heads, sizes)
    scores = Scores(0.4, softcap, window)
    tensors = [query, key, value] + ([sinks] if sunk else [])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockwise, "KEEP_KEYS", 10**6 if keep else 0)
        patch.setattr("sftctl.engine.model.documents.BLOCK_LENGTH", 16)
        out = blockwise_attention(query, key, value, documents(lengths), scores, sinks if sunk else None)
        actual = with_gradients(out, tensors)
    expected = with_gradients(whole(query, key, value, lengths, scores, sinks if sunk else None), tensors)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@settings(max_examples=60)
@given(
    prefixes=st.lists(
        st.tuples(st.integers(1, 60), st.lists(st.integers(1, 70), min_size=1, max_size=4)), min_size=1, max_size=3
    ),
    alone=st.lists(st.integers(1, 40), max_size=2),
    softcap=st.sampled_from([None, 1.5]),
    window=st.sampled_from([None, 1, 7, 50]),
    sunk=st.booleans(),
    keep=st.booleans(),
)
def test_a_shared_prefix_gives_what_copies_of_it_give(
    prefixes: list[tuple[int, list[int]]],
    alone: list[int],
    softcap: float | None,
    window: int | None,
    sunk: bool,
    keep: bool,
) -> None:
    """Outputs, and gradients summed over the copies, are those of documents that each begin with the prefix."""
    lengths, continues, copied, whole_lengths = [], [], [], []
    start = 0
    for prefix, owns in prefixes:
        number, first = len(lengths), start
        lengths, continues, start = [*lengths, prefix], [*continues, -1], start + prefix
        copied += range(first, first + prefix)
        whole_lengths.append(prefix)
        for own in owns:
            copied += [*range(first, first + prefix), *range(start, start + own)]
            whole_lengths.append(prefix + own)
            lengths, continues, start = [*lengths, own], [*continues, number], start + own
    for own in alone:
        copied += range(start, start + own)
        whole_lengths.append(own)
        lengths, continues, start = [*lengths, own], [*continues, -1], start + own
    query, key, value, sinks = inputs(lengths, (4, 2), (6, 4))
    tensors = [query, key, value] + ([sinks] if sunk else [])
    scores = Scores(0.4, softcap, window)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockwise, "KEEP_KEYS", 10**6 if keep else 0)
        patch.setattr("sftctl.engine.model.documents.BLOCK_LENGTH", 16)
        laid = documents(lengths, continues)
        out = blockwise_attention(query, key, value, laid, scores, sinks if sunk else None)
        actual = with_gradients(out, tensors)
    # Each position's own output is its last copy's: of a prefix, that of its last document.
    last = torch.tensor([len(copied) - 1 - copied[::-1].index(position) for position in range(start)])
    each = [tensor[copied] for tensor in (query, key, value)]
    expected = with_gradients(whole(*each, whole_lengths, scores, sinks if sunk else None)[last], tensors)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_gradcheck() -> None:
    *tensors, sinks = inputs([5, 2], (2, 1), (3, 3))

    def attention(*given: Any) -> Tensor:
        return blockwise_attention(*given[:3], documents([5, 2]), Scores(0.7, softcap=2.0, window=3), given[3])

    assert torch.autograd.gradcheck(attention, (*tensors, sinks))


def test_dropout_keeps_the_mean_and_its_gradient_is_that_of_the_same_draw() -> None:
    """Values of one: an output is the probability that was left, 1 on average. Linear in values: out · v = out(v)."""
    query, key, value, _ = inputs([64] * 4, (2, 2), (4, 4))
    scores = Scores(0.1, dropout=0.25)
    torch.manual_seed(0)
    ones = blockwise_attention(query, key, torch.ones_like(value), documents([64] * 4), scores)
    assert ones.std() > 0.05
    assert ones.mean().item() == pytest.approx(1.0, abs=0.02)
    torch.manual_seed(0)
    out = blockwise_attention(query, key, value, documents([64] * 4), scores)
    gradient = torch.autograd.grad(out.sum(), value)[0]
    assert (gradient * value).sum().item() == pytest.approx(out.sum().item())


def test_in_half_precision_gradients_of_a_long_document_are_added_up_in_float32() -> None:
    """Of 512 queries in 8 blocks: no worse than a few roundings of bf16."""
    lengths = [512]
    exact = inputs(lengths, (2, 1), (16, 16))[:3]
    half = [tensor.detach().bfloat16().requires_grad_() for tensor in exact]
    same = [tensor.detach().double().requires_grad_() for tensor in half]
    scores = Scores(0.25)
    actual = with_gradients(blockwise_attention(*half, documents(lengths), scores), half)
    expected = with_gradients(whole(*same, lengths, scores, None), same)
    for ours, theirs in zip(actual, expected, strict=True):
        error = (ours.double() - theirs).norm() / theirs.norm()
        assert error < 0.01
        assert ours.dtype == torch.bfloat16


def test_a_document_never_reads_another() -> None:
    """NaN in every other document leaves this one's outputs and gradients finite."""
    query, key, value, _ = inputs([7, 5, 9], (2, 1), (4, 4))
    for tensor in (query, key, value):
        tensor.data[:7] = tensor.data[12:] = math.nan
    out = blockwise_attention(query, key, value, documents([7, 5, 9]), Scores(0.5))
    gradients = torch.autograd.grad(out[7:12].sum(), (query, key, value))
    assert out[7:12].isfinite().all()
    assert all(gradient[7:12].isfinite().all() for gradient in gradients)
