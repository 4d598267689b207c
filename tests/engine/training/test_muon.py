"""Muon is torch's own in bf16, to the bit; in float32 a last digit of the gradient stays a last digit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sftctl.engine.training.muon import Muon, orthogonalised

SHAPES = [(48, 80), (80, 48), (64, 64), (1, 8)]
LR, DECAY = 0.01, 0.1


def matrices() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def steps(
    parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, *, count: int = 3, noise: float = 0.0
) -> None:
    torch.manual_seed(1)
    for _ in range(count):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape)
            parameter.grad += noise * torch.randn(parameter.shape)
        optimizer.step()


def test_in_bf16_it_is_torchs_own_to_the_bit() -> None:
    ours, theirs = matrices(), matrices()
    steps(ours, Muon(ours, lr=LR, weight_decay=DECAY, dtype=torch.bfloat16))
    steps(theirs, torch.optim.Muon(theirs, lr=LR, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw"))
    for mine, its in zip(ours, theirs, strict=True):
        assert torch.equal(mine, its)


def moved(dtype: torch.dtype) -> float:
    """How far weights are from those of gradients that are wrong by a millionth, in steps of `LR`."""
    parameters, others = matrices(), matrices()
    for each, noise in ((parameters, 0.0), (others, 1e-6)):
        steps(each, Muon(each, lr=LR, weight_decay=0.0, dtype=dtype), noise=noise)
    return max(float((a - b).detach().abs().max()) for a, b in zip(parameters, others, strict=True)) / LR


def test_in_float32_noise_stays_noise() -> None:
    assert moved(torch.float32) < 1e-4
    assert moved(torch.bfloat16) > 1e-3, "or nothing was gained"


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_come_near_one_and_vectors_stay(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    u, s, v = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    matrix = u @ torch.linspace(1.0, 0.1, len(s), dtype=torch.float64).diag() @ v
    between: Tensor = u.T @ orthogonalised(matrix) @ v.T
    values = between.diagonal()
    assert 0.5 < values.min() <= values.max() < 1.3
    torch.testing.assert_close(between, values.diag(), rtol=0, atol=1e-10)
