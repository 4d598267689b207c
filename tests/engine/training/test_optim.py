"""Schedules against Transformers' own, groups, Muon's split, clipping."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import math

import pytest
import torch
from torch import nn
from transformers import get_scheduler

from sftctl.config.schema import Optim
from sftctl.engine.training.optim import (
    OPTIMIZERS,
    SCHEDULES,
    clip_gradients,
    decay_groups,
    gradient_norm,
    learning_rate_at,
    parameters_of,
    refuse_without_library,
    set_learning_rate,
)
from sftctl.errors import ModelError


def choices(leaf: str) -> set[str]:
    annotation = inspect.get_annotations(Optim, eval_str=True)[leaf]
    return set(annotation.__args__)


def test_the_schema_and_the_tables_name_the_same_variants() -> None:
    assert choices("optimizer") == set(OPTIMIZERS)
    assert choices("lr_scheduler_type") == set(SCHEDULES)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_an_optimizers_fields_are_leaves_of_the_schema(name: str) -> None:
    parameters = inspect.signature(OPTIMIZERS[name]).parameters
    fields = {key for key, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}
    assert fields <= {*inspect.get_annotations(Optim), "precision"}


def ours(name: str, *, total: int, warmup: float, min_lr_ratio: float = 0.0) -> list[float]:
    return [
        learning_rate_at(
            step,
            total_steps=total,
            learning_rate=0.5,
            lr_scheduler_type=name,
            warmup_steps=warmup,
            min_lr_ratio=min_lr_ratio,
        )
        for step in range(total)
    ]


@pytest.mark.parametrize("name", ["linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt"])
@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_schedules_are_those_of_transformers(name: str, warmup: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=40)
    expected = []
    for _ in range(40):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert ours(name, total=40, warmup=warmup) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["linear", "cosine", "polynomial", "warmup_stable_decay"])
def test_the_floor_is_a_share_of_the_peak(name: str) -> None:
    rates = ours(name, total=100, warmup=0, min_lr_ratio=0.1)
    assert rates[0] == pytest.approx(0.5)
    assert 0.05 <= rates[-1] < 0.08


def test_warmup_below_one_is_a_share_of_all_steps() -> None:
    assert ours("linear", total=40, warmup=0.1) == ours("linear", total=40, warmup=4)


def test_a_stable_phase_comes_before_the_decay() -> None:
    rates = ours("warmup_stable_decay", total=10, warmup=2)
    assert rates == pytest.approx([0, 0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.25])


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"embed": nn.Embedding(5, 4), "layer": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})


def test_only_matrices_decay() -> None:
    matrices, vectors = decay_groups(model().named_parameters(), weight_decay=0.1)
    assert [parameter.ndim for parameter in matrices["params"]] == [2, 2]
    assert matrices["weight_decay"] == 0.1
    assert {parameter.ndim for parameter in vectors["params"]} == {1}
    assert vectors["weight_decay"] == 0.0


SETTINGS = {"learning_rate": 0.1, "weight_decay": 0.0, "betas": (0.9, 0.999), "epsilon": 1e-8}


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_lowers_a_loss_and_obeys_the_learning_rate(name: str) -> None:
    if name == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    net = model()
    function = OPTIMIZERS[name]
    optimizer = function(list(net.named_parameters()), **parameters_of(SETTINGS, function))
    ids = torch.arange(5)

    def loss() -> torch.Tensor:
        return net["norm"](net["layer"](net["embed"](ids))).sub(1.0).square().mean()  # type: ignore[no-any-return]

    first = loss().item()
    for _ in range(20):
        set_learning_rate(optimizer, 0.05)
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    after = loss().item()
    assert after < first

    set_learning_rate(optimizer, 0.0)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    loss().backward()
    optimizer.step()
    if name != "adafactor":  # its step is relative to the weights' size and has a floor of its own
        for old, new in zip(before, net.parameters(), strict=True):
            assert torch.equal(old, new)


def test_adamw_8bit_has_moments_in_8_bits() -> None:
    pytest.importorskip("bitsandbytes")
    large, small = nn.Parameter(torch.zeros(64, 64)), nn.Parameter(torch.zeros(63, 65))
    function = OPTIMIZERS["adamw_8bit"]
    optimizer = function([("large", large), ("small", small)], **parameters_of(SETTINGS, function))
    large.grad, small.grad = torch.ones(64, 64), torch.ones(63, 65)
    optimizer.step()
    assert optimizer.state[large]["state1"].dtype is torch.uint8
    assert optimizer.state[small]["state1"].dtype is torch.float32


def test_an_optimizer_without_its_library_is_refused_before_anything_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"optim\.optimizer: adamw_8bit needs bitsandbytes.*'sftctl\[quant\]'"):
        refuse_without_library("adamw_8bit")
    for name in sorted(set(OPTIMIZERS) - {"adamw_8bit"}):
        refuse_without_library(name)


def test_muon_takes_hidden_matrices_and_adamw_the_rest() -> None:
    optimizer = OPTIMIZERS["muon"](list(model().named_parameters()), **SETTINGS)
    kinds = [(type(part).__name__, sum(len(g["params"]) for g in part.param_groups)) for part in optimizer.parts]
    assert kinds == [("Muon", 1), ("AdamW", 4)]


def test_muons_state_comes_back() -> None:
    net = model()
    optimizer = OPTIMIZERS["muon"](list(net.named_parameters()), **SETTINGS)
    net["norm"](net["layer"](net["embed"](torch.arange(5)))).square().mean().backward()
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())  # torch hands out its own tensors
    other = OPTIMIZERS["muon"](list(net.named_parameters()), **SETTINGS)
    other.load_state_dict(state)
    net["norm"](net["layer"](net["embed"](torch.arange(5)))).square().mean().backward()
    weights = [parameter.detach().clone() for parameter in net.parameters()]
    optimizer.step()
    expected = [parameter.detach().clone() for parameter in net.parameters()]
    for parameter, weight in zip(net.parameters(), weights, strict=True):
        parameter.data.copy_(weight)
    other.step()
    for parameter, value in zip(net.parameters(), expected, strict=True):
        assert torch.equal(parameter, value)


def test_clipping_scales_to_the_norm() -> None:
    """As torch's own clipping where the norm is above the maximum; below it not a bit of a gradient changes."""
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad = torch.tensor([3.0, 0.0])
    parameters[1].grad = torch.tensor([4.0])
    norm = gradient_norm(parameters)
    assert norm.item() == 5.0
    torchs = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    torchs[0].grad, torchs[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    nn.utils.clip_grads_with_norm_(torchs, 1.0, norm)
    clip_gradients(parameters, 5.0, 1.0)
    for one, other in zip(torchs, parameters[:2], strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert gradient_norm(parameters).item() == pytest.approx(1.0, rel=1e-5)
    before = [parameter.grad.tolist() for parameter in parameters if parameter.grad is not None]
    clip_gradients(parameters, 1.0, 1.0)
    assert [parameter.grad.tolist() for parameter in parameters if parameter.grad is not None] == before
    assert math.isclose(gradient_norm([nn.Parameter(torch.zeros(2))]).item(), 0.0)
