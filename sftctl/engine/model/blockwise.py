"""Causal attention within documents as batched products: exact, on any device, memory linear in the tokens.

For each block of queries (see `documents`): scores = q kᵀ, soft-capped, masked, softmax, times v. The backward
pass is written out, so that nothing is kept but queries, keys and values, and the probabilities where they are
small; scores are computed again. Softmax runs in float32 inside its kernel, products in the inputs' dtype, and
the gradients of keys and values add up over blocks in float32.

Documents that go on from a prefix have its keys copied before their own, and give its gradient back as a sum.

A block of queries leaves out the keys that no query in it may see, so a long document costs little over half of
its square; grouping several documents in one product is what makes short documents cheap.

Shapes: T positions, H heads = K key-value heads * G, D head size (V for values), N documents of a group times K,
R = queries of a block * G, E keys of a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sftctl.engine.model.documents import Block, Documents, Group, Layout, Rows

KEEP_KEYS = 128
"""Probabilities are kept for the backward pass where a query sees fewer keys than this, on average (or than
twice its head size): they then take at most about twice the memory of the queries. One product of five saved."""


@dataclass(frozen=True, slots=True)
class Scores:
    """How scores become probabilities: scale, soft-cap (Gemma), window (Mistral), dropout."""

    scale: float
    softcap: float | None = None
    window: int | None = None
    dropout: float = 0.0


def blockwise_attention(
    query_THD: Tensor,
    key_TKD: Tensor,
    value_TKV: Tensor,
    documents: Documents,
    scores: Scores,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """Attention output [T, H, V]; each position sees its own document up to itself, and what that continues.

    `sinks_H` (gpt-oss) is a learned score per head that takes probability and gives nothing.
    """
    keep = documents.mean_keys < max(KEEP_KEYS, 2 * query_THD.shape[-1]) and scores.softcap is None
    layout = documents.layout(key_TKD.shape[1], query_THD.device)
    out: Tensor = _Blockwise.apply(query_THD, key_TKD, value_TKV, sinks_H, layout, scores, keep)  # type: ignore[no-untyped-call]
    return out


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_THD: Tensor,
        key_TKD: Tensor,
        value_TKV: Tensor,
        sinks_H: Tensor | None,
        layout: Layout,
        scores: Scores,
        keep: bool,
    ) -> Tensor:
        K, V = value_TKV.shape[1:]
        H = query_THD.shape[1]
        outputs, kept = [], []
        for group in layout.groups:
            queries = _blocks(_gathered(query_THD, group.queries, K), group, K, H // K)
            key, value = (_by_document(tensor, group, K) for tensor in (key_TKD, value_TKV))
            out = value.new_empty(len(group.queries.index), H // K * V)
            for block, query, block_out in zip(group.blocks, queries, _blocks(out, group, K, H // K), strict=True):
                keys = _keys(block, scores, K)
                probabilities, _ = _probabilities(query, key[keys], block, scores, sinks_H)
                dropped, mask = _dropped(_without_sink(probabilities, sinks_H), scores.dropout)
                torch.bmm(dropped, value[keys], out=block_out)
                kept += [probabilities if keep else None, mask]
            outputs.append(out)
        ctx.save_for_backward(query_THD, key_TKD, value_TKV, sinks_H, *kept)
        ctx.layout, ctx.scores = layout, scores
        return _spread(outputs, layout.query_of_TK, (*query_THD.shape[:2], V))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_THV: Tensor) -> tuple[Tensor | None, ...]:
        query_THD, key_TKD, value_TKV, sinks_H, *kept = ctx.saved_tensors
        K = key_TKD.shape[1]
        grad_sinks_H = None if sinks_H is None else torch.zeros_like(sinks_H)
        grads: tuple[list[Tensor], ...] = ([], [], [])
        shared: list[tuple[slice, Tensor, Tensor]] = []
        kept_blocks = iter(zip(kept[::2], kept[1::2], strict=True))
        for group in ctx.layout.groups:
            rows = (
                _gathered(query_THD, group.queries, K),
                _by_document(key_TKD, group, K),
                _by_document(value_TKV, group, K),
            )
            grad = _gathered(grad_THV, group.queries, K, zero_pads=True)
            results = _group_backward(rows, grad, group, ctx.scores, sinks_H, grad_sinks_H, K, kept_blocks)
            for gradients, result in zip(grads, results, strict=True):
                gradients.append(result)
            if group.prefix.stop > group.prefix.start:
                shared.append((group.prefix, *(_of_prefix(result, group, K) for result in results[1:])))
        layout = ctx.layout
        places = (layout.query_of_TK, layout.key_of_TK, layout.key_of_TK)
        inputs = (query_THD, key_TKD, value_TKV)
        whole = [_spread(*each) for each in zip(grads, places, (tensor.shape for tensor in inputs), strict=True)]
        for prefix, *parts in shared:
            for gradient, part in zip(whole[1:], parts, strict=True):
                gradient[prefix] += part
        grad_query, grad_key, grad_value = (
            gradient.to(tensor.dtype) for gradient, tensor in zip(whole, inputs, strict=True)
        )
        return grad_query, grad_key, grad_value, grad_sinks_H, None, None, None


def _group_backward(
    inputs: tuple[Tensor, Tensor, Tensor],
    grad_out: Tensor,
    group: Group,
    scores: Scores,
    sinks_H: Tensor | None,
    grad_sinks_H: Tensor | None,
    K: int,
    kept_blocks: Iterator[tuple[Tensor | None, Tensor | None]],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a group's queries, keys and values; those of the sinks are added in place."""
    query_rows, key, value = inputs
    exact = key.dtype if len(group.blocks) == 1 else torch.promote_types(key.dtype, torch.float32)
    grad_rows = torch.empty_like(query_rows)
    grad_key, grad_value = torch.zeros_like(key, dtype=exact), torch.zeros_like(value, dtype=exact)
    G = query_rows.shape[-1] // key.shape[-1]
    by_block = (_blocks(rows, group, K, G) for rows in (query_rows, grad_out, grad_rows))
    for block, query, grad, grad_query in zip(group.blocks, *by_block, strict=True):
        (probabilities, mask), tanh, keys = next(kept_blocks), None, _keys(block, scores, K)
        block_key = key[keys].contiguous()
        if probabilities is None:
            probabilities, tanh = _probabilities(query, block_key, block, scores, sinks_H)
        grad_probabilities = torch.zeros_like(probabilities) if sinks_H is not None else torch.empty_like(probabilities)
        seen = _without_sink(grad_probabilities, sinks_H)
        torch.bmm(grad, value[keys].transpose(1, 2), out=seen)
        dropped = _without_sink(probabilities, sinks_H)
        if mask is not None:
            seen.mul_(mask)
            dropped = dropped * mask
        _add_product(grad_value[keys], dropped.transpose(1, 2), grad)
        grad_scores = torch._softmax_backward_data(grad_probabilities, probabilities, -1, probabilities.dtype)
        if grad_sinks_H is not None:
            grad_sinks_H += _per_head(grad_scores[..., -1], block, K).sum((0, 2)).flatten().to(grad_sinks_H.dtype)
        grad_scores = _without_sink(grad_scores, sinks_H)
        if tanh is not None:
            grad_scores = grad_scores * (1 - tanh.square_())
        torch.baddbmm(grad_query, grad_scores, block_key, beta=0, alpha=scores.scale, out=grad_query)
        _add_product(grad_key[keys], grad_scores.transpose(1, 2), query, alpha=scores.scale)
    return grad_rows, grad_key, grad_value


def _probabilities(
    query: Tensor, key: Tensor, block: Block, scores: Scores, sinks_H: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Softmax over [N, R, E (+ 1 for the sink)]; and the tanh of the capped scores, where they are capped."""
    N, R, E = query.shape[0], query.shape[1], key.shape[1]
    length = block.end - block.start
    all_scores = query.new_empty(N, R, E + (sinks_H is not None))
    seen = _without_sink(all_scores, sinks_H)
    torch.baddbmm(seen, query, key.transpose(1, 2), beta=0, alpha=scores.scale, out=seen)
    tanh = None
    if scores.softcap is not None:
        tanh = seen.div_(scores.softcap).tanh_().clone()
        seen.mul_(scores.softcap)
    by_query = all_scores.view(N, length, R // length, -1)
    bias = _bias(length, E, scores.window, query.dtype, query.device)
    by_query[..., E - bias.shape[-1] : E].add_(bias)
    if sinks_H is not None:
        K = N // block.count
        _per_head(all_scores[..., -1], block, K).copy_(sinks_H.view(K, 1, -1))
    return torch.softmax(all_scores, dim=-1), tanh


@lru_cache(maxsize=256)
def _bias(length: int, num_keys: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """0 where a query may see a key and -inf elsewhere, [length, 1, keys]: the last `length` keys are the queries' own.

    Without a window the keys before those are seen by all, and left out. Two queries, four keys, window 2:

        -inf    0    0  -inf
        -inf -inf    0    0
    """
    if window is None or window >= num_keys:
        num_keys = length
        window = num_keys
    query = torch.arange(num_keys - length, num_keys)[:, None]
    key = torch.arange(num_keys)
    hidden = (key > query) | (key <= query - window)
    return torch.zeros(hidden.shape).masked_fill_(hidden, -math.inf)[:, None].to(device, dtype)


def _keys(block: Block, scores: Scores, K: int) -> tuple[slice, slice]:
    """Where a block's keys lie in [N, P + L, D]: from the first that any of its queries sees."""
    start, end = block.before + block.start, block.before + block.end
    first = 0 if scores.window is None else max(0, start - scores.window + 1)
    return slice(0, block.count * K), slice(first, end)


def _blocks(rows: Tensor, group: Group, K: int, G: int) -> Iterator[Tensor]:
    """A group's rows of queries [Q, G * D] as one contiguous [N, R, D] for each block."""
    start = 0
    for block in group.blocks:
        num_documents, length = block.count * K, block.end - block.start
        end = start + num_documents * length
        yield rows[start:end].view(num_documents, length * G, -1)
        start = end


def _without_sink(tensor: Tensor, sinks_H: Tensor | None) -> Tensor:
    return tensor if sinks_H is None else tensor[..., :-1]


def _per_head(tensor_NR: Tensor, block: Block, K: int) -> Tensor:
    """[N, R] as [documents, K, length, G]."""
    return tensor_NR.view(block.count, K, block.end - block.start, -1)


def _dropped(probabilities: Tensor, dropout: float) -> tuple[Tensor, Tensor | None]:
    """Probabilities after dropout, and what they were multiplied by."""
    if dropout == 0.0:
        return probabilities, None
    mask = torch.empty_like(probabilities).bernoulli_(1 - dropout).div_(1 - dropout)
    return probabilities * mask, mask


def _add_product(total: Tensor, left: Tensor, right: Tensor, alpha: float = 1.0) -> None:
    """total += alpha * left @ right, where total may be of a wider dtype."""
    if total.dtype == left.dtype:
        total.baddbmm_(left, right, alpha=alpha)
    else:
        total.add_(torch.bmm(left, right), alpha=alpha)


def _gathered(tensor_THD: Tensor, rows: Rows, K: int, *, zero_pads: bool = False) -> Tensor:
    """[T, H, D] as rows [Q, G * D] in another order, the G heads that share a key side by side."""
    gathered = tensor_THD.reshape(tensor_THD.shape[0] * K, -1).index_select(0, rows.index)
    if zero_pads and rows.pads.numel():
        gathered.index_fill_(0, rows.pads, 0.0)
    return gathered


def _by_document(tensor_TKD: Tensor, group: Group, K: int) -> Tensor:
    """Keys or values of a group, [N, P + L, D]."""
    return _gathered(tensor_TKD, group.keys, K).view(group.num_documents * K, -1, tensor_TKD.shape[-1])


def _of_prefix(grad_keys: Tensor, group: Group, K: int) -> Tensor:
    """What a group's documents give to the keys (or values) of their prefix, [P, K, D]; summed in float32 or wider."""
    before = group.prefix.stop - group.prefix.start
    by_document = grad_keys.view(group.num_documents, K, grad_keys.shape[1], -1)[:, :, :before]
    return by_document.sum(0, dtype=torch.promote_types(grad_keys.dtype, torch.float32)).transpose(0, 1)


def _spread(groups: list[Tensor], place_TK: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The way back: groups' rows to [T, H, D]."""
    rows = [group.reshape(-1, math.prod(shape) // len(place_TK)) for group in groups]
    return (torch.cat(rows) if len(rows) > 1 else rows[0]).index_select(0, place_TK).view(shape)
