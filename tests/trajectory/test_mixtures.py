"""A mixture of experts through the command line: its auxiliary loss is trained, logged, and cut as the rest is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MIXTURE = (
    "--set=model.architecture.model_type=mixtral",
    "--set=model.architecture.num_local_experts=4",
    "--set=model.architecture.num_experts_per_tok=2",
    "--set=sft.router_aux_loss_coef=0.5",
    "--max-steps=3",
)


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def whole(train_module: Callable[..., Path]) -> list[dict[str, Any]]:
    return records(train_module(*MIXTURE, name="whole"))


@pytest.mark.parametrize(
    "options",
    [
        ("--no-padding-free",),
        ("--no-padding-free", "--pad-to-multiple-of=48"),
        ("--packing",),
        ("--gradient-checkpointing=true",),
        ("--gradient-checkpointing=selective",),
        ("--gradient-checkpointing=true", "--activation-offloading"),
    ],
    ids=["padded", "padded more", "packed", "checkpointing", "selective", "offloading"],
)
def test_the_layout_of_a_batch_changes_neither_loss(
    train_module: Callable[..., Path], whole: list[dict[str, Any]], options: tuple[str, ...]
) -> None:
    run = records(train_module(*MIXTURE, *options, name="-".join(options).replace("--", "")))
    for here, there in zip(run, whole, strict=True):
        assert here["loss"] == pytest.approx(there["loss"], rel=1e-5)
        assert here["router_aux_loss"] == pytest.approx(there["router_aux_loss"], rel=1e-5)
        assert here["grad_norm"] == pytest.approx(there["grad_norm"], rel=1e-4)


def test_another_cut_into_micro_batches_moves_it_by_what_the_product_of_means_does(
    train_module: Callable[..., Path], whole: list[dict[str, Any]]
) -> None:
    """The first step, of the same weights: the loss is the same, the auxiliary one is near and not above E."""
    cut = records(train_module(*MIXTURE, "--gradient-accumulation-steps=8", *CUT, name="cut"))[0]
    assert cut["loss"] == pytest.approx(whole[0]["loss"], rel=1e-5)
    assert cut["router_aux_loss"] == pytest.approx(whole[0]["router_aux_loss"], rel=0.02)
    assert cut["router_aux_loss"] != whole[0]["router_aux_loss"]


CUT = ("--set=train.per_device_train_batch_size=3",)


def test_it_trains_the_router_and_its_coefficient_is_not_in_the_metric(
    train_module: Callable[..., Path], whole: list[dict[str, Any]]
) -> None:
    off = ("--set=sft.router_aux_loss_coef=0.0",)
    without = records(train_module(*(word for word in MIXTURE if "coef" not in word), *off, name="off"))
    assert all("router_aux_loss" not in record for record in without)
    assert whole[0]["loss"] == pytest.approx(without[0]["loss"], rel=1e-6)
    assert whole[0]["grad_norm"] != pytest.approx(without[0]["grad_norm"], rel=1e-4)
    assert 2.0 < whole[0]["router_aux_loss"] < 4.0  # top-2 of 4: 2 where all is even, 4 at worst
    assert whole[-1]["router_aux_loss"] < whole[0]["router_aux_loss"]


def test_on_a_dense_model_the_coefficient_is_said_to_have_no_effect(
    train: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = train("--max-steps=1", "--router-aux-loss-coef=0.01")
    expected = "sft.router_aux_loss_coef = 0.01 has no effect: a llama model has no experts that are balanced by a loss"
    assert expected in capsys.readouterr().out
    assert "router_aux_loss" not in records(run)[0]
