"""Whether documents may go on from one prefix (`Batch.continues`): what stands against it, and the proof.

Exact wherever a hidden state follows from the tokens before it and from nothing else. So not where random numbers are
drawn in a step (each copy of a prefix would draw its own), where a mixture of experts is balanced (its loss counts
tokens), and only with our own attention function, which knows what a document continues. The rest is measured, on the
loaded model and, where a kernel takes 16-bit numbers, on that kernel with its gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sftctl.engine.model.attention import (
    VARLEN,
    implementation_of,
    kernel_attention,
    row_logits,
    tolerances,
)
from sftctl.engine.model.blockwise import Scores, blockwise_attention
from sftctl.engine.model.documents import Documents
from sftctl.engine.model.head import evaluation_mode
from sftctl.records import Batch

PREFIX, OWN = 9, (7, 5)
"""Tokens of the self-test's prefix, and of the two documents that go on from it."""

KERNEL_TOLERANCE = 0.02
"""Relative error of a norm: a few roundings of bf16. Chosen: in the tests it tells queries lined up otherwise."""


def random_rates(config: Any) -> dict[str, float]:
    """The fields of a model's config by which it draws random numbers in training, and their rates above 0."""
    return {
        name: float(value)
        for name, value in config.get_text_config().to_dict().items()
        if ("drop" in name or "jitter" in name) and type(value) in (int, float) and value > 0
    }


def reason_against(
    model: Any, *, rates: Mapping[str, float], balances: bool, compute_dtype: torch.dtype | None
) -> str | None:
    """Why prefixes are not to be shared, if there is a reason.

    `rates` are those of dropout and the like, by field; `balances`: a loss is added that balances experts;
    `compute_dtype` is what training computes in where that is not the dtype that the model has now.
    """
    implementation = implementation_of(model)
    if implementation != VARLEN:
        return f"{implementation} attention does not know what a document goes on from"
    if rates:
        name, rate = next(iter(rates.items()))
        return f"each copy of a prefix draws random numbers of its own ({name} = {rate:g})"
    if balances:
        return "the loss that balances experts counts each copy of a prefix"
    if not model_agrees(model):
        return "the logits of this model after a shared prefix are not those after a copy of it"
    dtype = compute_dtype or next(model.parameters()).dtype
    if model.device.type == "cuda" and dtype != torch.float32 and not kernel_agrees(model.device, dtype):
        return "the attention kernel of this device does not line queries up with the last of the keys"
    return None


@torch.no_grad()
def model_agrees(model: Any, *, seed: int = 0) -> bool:
    """Two documents after a shared prefix, against each after its own copy, and the second against another first.

    As in the isolation self-test, on 49 tokens; modes, gradients and random state are left as they were.
    """
    draw = np.random.default_rng(seed)
    vocabulary = model.config.get_text_config().vocab_size
    prefix, one, two, other = (draw.integers(0, vocabulary, length) for length in (PREFIX, *OWN, OWN[0]))
    with evaluation_mode(model):
        shared, shared_other = (row_logits(model, _row([prefix, first, two], [-1, 0, 0])) for first in (one, other))
        copies = [row_logits(model, _row([np.concatenate((prefix, own))], None))[PREFIX:] for own in (one, two)]
    scale = float(copies[1].square().mean().sqrt())
    loose, tight = tolerances(model)
    second = slice(PREFIX + OWN[0], None)
    agrees = float((shared[PREFIX:] - torch.cat(copies)).abs().max()) <= loose * scale
    return agrees and float((shared - shared_other)[second].abs().max()) <= tight * scale


def kernel_agrees(device: torch.device, dtype: torch.dtype) -> bool:
    """The variable-length kernel with more keys than queries, against the blockwise path: output and gradients."""
    documents = Documents(np.cumsum([0, PREFIX, *OWN]).astype(np.int32), np.array([-1, 0, 0], np.int32))
    generator = torch.Generator().manual_seed(0)
    query, key, value, probe = (
        torch.randn(PREFIX + sum(OWN), heads, 64, generator=generator).to(device, dtype) for heads in (4, 2, 2, 4)
    )
    scores = Scores(0.125)

    def run(attention: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        inputs = [tensor.to(dtype).requires_grad_() for tensor in (query, key, value)]
        out = attention(*inputs, documents, scores)
        return [out.detach(), *torch.autograd.grad(out, inputs, probe.to(dtype))]

    with torch.enable_grad():
        expected = run(blockwise_attention, torch.float32)
        try:
            actual = run(kernel_attention, dtype)
        except RuntimeError:  # a build without the kernel, or without its backward pass for such lengths
            return False
    return all(
        float((ours.float() - theirs).norm()) <= KERNEL_TOLERANCE * float(theirs.norm())
        for ours, theirs in zip(actual, expected, strict=True)
    )


def _row(documents: list[np.ndarray[Any, np.dtype[np.int64]]], continues: list[int] | None) -> Batch:
    """One row of documents; all but the first go on from it where `continues` is given."""
    ids = np.concatenate(documents)[None]
    starts = [0 if not continues or before < 0 else PREFIX for before in continues or [-1] * len(documents)]
    positions = np.concatenate([np.arange(len(ids)) + start for ids, start in zip(documents, starts, strict=True)])
    bounds = np.cumsum([0, *map(len, documents)]).astype(np.int32)
    after = None if continues is None else np.array(continues, np.int32)
    return Batch(ids, positions[None], ids, bounds, None, ids.size, 0, (), continues=after)
