"""bf16 copies follow their float32 masters; gradients are added up in float32."""

from __future__ import annotations

import torch
from torch import nn

from sftctl.engine.training.precision import Weights, resolve_precision


def test_fp32_needs_no_second_copy() -> None:
    layer = nn.Linear(3, 2)
    weights = Weights(layer.named_parameters(), compute_dtype=None)
    assert weights.named["weight"] is layer.weight
    layer(torch.ones(1, 3)).sum().backward()
    assert layer.weight.grad is not None
    weights.zero_gradients()
    assert layer.weight.grad is None
    assert weights.gradient_of(layer.weight) is None


def test_masters_keep_what_bf16_would_round_away() -> None:
    layer = nn.Linear(3, 2)
    before = layer.weight.detach().clone()
    weights = Weights(layer.named_parameters(), compute_dtype=torch.bfloat16)
    assert layer.weight.dtype == torch.bfloat16
    assert torch.equal(weights.named["weight"], before)
    weights.named["weight"].add_(1e-5)
    weights.publish()
    assert torch.equal(weights.named["weight"], before + 1e-5)
    assert torch.equal(layer.weight, (before + 1e-5).bfloat16())


def test_micro_batches_are_added_up_in_float32() -> None:
    """A sum of 1 and 2^-9 is representable in float32 and not in bfloat16."""
    layer = nn.Linear(1, 1, bias=False)
    weights = Weights(layer.named_parameters(), compute_dtype=torch.bfloat16)
    for value in (1.0, 2.0**-9):
        layer(torch.full((1, 1), value, dtype=torch.bfloat16)).sum().backward()
    assert layer.weight.grad is None
    master = weights.named["weight"]
    assert master.grad is not None
    assert master.grad.item() == 1.0 + 2.0**-9


def test_frozen_weights_are_cast_and_have_no_master() -> None:
    layer = nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    weights = Weights(layer.named_parameters(), compute_dtype=torch.bfloat16)
    assert list(weights.named) == ["weight"]
    assert layer.bias.dtype == torch.bfloat16


def test_what_is_asked_for_is_what_is_used() -> None:
    cpu = torch.device("cpu")
    assert resolve_precision("fp32", cpu) == "fp32"
    assert resolve_precision("bf16", cpu) == "bf16"
    assert resolve_precision("auto", cpu) in ("fp32", "bf16")
