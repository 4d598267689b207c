"""Gradients are bitwise what they are without offloading; what must stay, stays; an exception leaves nothing behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sftctl.engine.model.checkpointing import set_gradient_checkpointing
from sftctl.engine.model.loading import load_model
from sftctl.engine.offloading import ActivationOffloading

IDS = torch.arange(48).reshape(2, 24) % 50


def model_of(mode: Any = False) -> Any:
    model = load_model(
        name_or_path=None,
        init="random",
        architecture={
            "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2,
        },
        vocab_size=50,
        token_ids={},
        seed=0,
    )  # fmt: skip
    set_gradient_checkpointing(model, mode)
    return model


def gradients(model: Any, offloading: ActivationOffloading | None) -> dict[str, Tensor]:
    model.zero_grad()
    if offloading is None:
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    else:
        with offloading:
            model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("mode", [False, True, "selective"])
def test_gradients_are_bitwise_equal(mode: Any) -> None:
    """With every tensor offloaded, whatever its size, and over several steps with one object."""
    model = model_of(mode)
    expected = gradients(model, None)
    offloading = ActivationOffloading(model, min_offload_bytes=0)
    for _ in range(3):
        actual = gradients(model, offloading)
        assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_strided_expanded_and_offset_tensors_come_back_exactly() -> None:
    base = torch.arange(24.0).reshape(4, 6)
    views = [base.T, base[1:, 2:], base[:, :1].expand(4, 6), base[::2], base]
    seen = []

    class Keep(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, view: Tensor) -> Tensor:
            ctx.save_for_backward(view)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
            seen.append(ctx.saved_tensors[0].clone())
            return grad, None

    x = torch.zeros(1, requires_grad=True)
    with ActivationOffloading(nn.Module(), min_offload_bytes=0):
        for view in views:
            Keep.apply(x, view).sum().backward()
    assert all(torch.equal(ours, view) for ours, view in zip(seen, views, strict=True))


def test_an_exception_in_the_forward_leaves_no_hooks() -> None:
    model = model_of()
    expected = gradients(model, None)
    offloading = ActivationOffloading(model, min_offload_bytes=0)

    def fail() -> None:
        with offloading:
            model(input_ids=IDS, use_cache=False)
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    packed: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        (torch.ones(2, requires_grad=True) ** 2).sum()
    assert packed, "only the hooks set here are active"
    actual = gradients(model, offloading)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
