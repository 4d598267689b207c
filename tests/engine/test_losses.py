"""The fused loss against the obvious one: full logits, log_softmax, autograd, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args, get_type_hints

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sftctl.config.schema import Sft
from sftctl.engine.losses import LOSSES, even_chunk_size, linear_cross_entropy
from sftctl.records import IGNORE_INDEX


@dataclass
class PlainHead:
    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    def logits(self, hidden: Tensor) -> Tensor:
        logits = torch.nn.functional.linear(hidden, self.weight, self.bias) * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


def reference(
    hidden: Tensor, head: PlainHead, labels: Tensor, weights: Tensor | None, loss_type: str
) -> dict[str, Tensor]:
    """Every formula as engine.md writes it, over whole logits."""
    kept = labels != IGNORE_INDEX
    logits = head.logits(hidden)[kept]
    targets = labels[kept]
    nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    token_weights = torch.ones_like(nll) if weights is None else weights[kept]
    loss_weights = {"nll": torch.ones_like(nll), "dft": torch.exp(-nll).detach()}[loss_type]
    probs = logits.softmax(-1)
    return {
        "loss": (token_weights * loss_weights * nll).sum(),
        "num_correct": (logits.argmax(-1) == targets).sum(),
        "entropy": -(probs * probs.log()).sum(),
    }


@st.composite
def problems(draw: st.DrawFn) -> dict[str, object]:
    return {
        "T": draw(st.integers(1, 40)),
        "V": draw(st.integers(2, 90)),
        "D": draw(st.integers(1, 24)),
        "supervised": draw(st.floats(0, 1)),
        "chunk_size": draw(st.none() | st.integers(1, 45)),
        "bias": draw(st.booleans()),
        "weighted": draw(st.booleans()),
        "softcap": draw(st.none() | st.floats(1, 30)),
        "scale": draw(st.sampled_from([1.0, 0.0625, 1.7])),
        "loss_type": draw(st.sampled_from(sorted(LOSSES))),
        "seed": draw(st.integers(0, 2**31)),
    }


@given(problems())
@settings(deadline=None, max_examples=150)
def test_equals_the_full_logits_in_float64(problem: dict) -> None:
    """Whatever the shapes, the mask, the chunks, the head and the loss: the same loss and the same gradients."""
    torch.manual_seed(problem["seed"])
    T, V, D = problem["T"], problem["V"], problem["D"]
    hidden = torch.randn(T, D, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(V, D, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(V, dtype=torch.float64, requires_grad=True) if problem["bias"] else None
    labels = torch.where(torch.rand(T) < problem["supervised"], torch.randint(V, (T,)), IGNORE_INDEX)
    weights = torch.rand(T, dtype=torch.float64) if problem["weighted"] else None
    head = PlainHead(weight, bias, problem["softcap"], problem["scale"])
    inputs = [tensor for tensor in (hidden, weight, bias) if tensor is not None]

    expected = reference(hidden, head, labels, weights, problem["loss_type"])
    expected_grads = torch.autograd.grad(expected["loss"] / 7, inputs)
    actual = linear_cross_entropy(
        hidden, head, labels, weights, loss_type=problem["loss_type"], chunk_size=problem["chunk_size"]
    )
    actual_grads = torch.autograd.grad(actual.loss / 7, inputs)

    assert actual.count == int((labels != IGNORE_INDEX).sum())
    torch.testing.assert_close(actual.loss, expected["loss"], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(actual.entropy, expected["entropy"], rtol=1e-9, atol=1e-9)
    assert actual.num_correct == expected["num_correct"]
    for actual_grad, expected_grad in zip(actual_grads, expected_grads, strict=True):
        torch.testing.assert_close(actual_grad, expected_grad, rtol=1e-8, atol=1e-10)


def test_nothing_supervised_is_zero_and_in_the_graph() -> None:
    hidden = torch.randn(5, 4, requires_grad=True)
    weight = torch.randn(7, 4, requires_grad=True)
    sums = linear_cross_entropy(hidden, PlainHead(weight), torch.full((5,), IGNORE_INDEX), loss_type="dft")
    sums.loss.backward()
    assert (sums.loss.item(), sums.count, sums.entropy.item(), sums.num_correct.item()) == (0, 0, 0, 0)
    torch.testing.assert_close(hidden.grad, torch.zeros(5, 4))
    torch.testing.assert_close(weight.grad, torch.zeros(7, 4))


@pytest.mark.parametrize(("count", "max_rows", "size"), [(1100, 682, 550), (0, 9, 1), (5, 1, 1), (5, 0, 1), (6, 6, 6)])
def test_chunks_are_few_and_even(count: int, max_rows: int, size: int) -> None:
    assert even_chunk_size(count, max_rows=max_rows) == size


def test_the_schema_names_the_table() -> None:
    assert set(get_args(get_type_hints(Sft)["loss_type"])) == set(LOSSES)
