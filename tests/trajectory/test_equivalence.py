"""The equivalence contract: the same global batch gives the same loss and gradient, however it is cut and laid out.

Each row of VARIANTS is a whole run through the command line, held against the base run: 24 rows a step, flat,
float32. Promised: the loss of every step within 1e-5 (relative), the gradient norm within 1e-4, and no drift over
20 steps: the differences of the second half are no larger than float32 noise, and do not lean to one side.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sftctl.engine import assemble
from sftctl.engine.memory.offloading import ActivationOffloading

CUT = {
    "2 micro-batches of 12": ["--per-device-train-batch-size=12", "--gradient-accumulation-steps=2"],
    "24 micro-batches of 1": ["--per-device-train-batch-size=1", "--gradient-accumulation-steps=24"],
}
LAYOUT = {
    "padded": ["--no-padding-free"],
    "padded to 16": ["--no-padding-free", "--pad-to-multiple-of=16"],
    "flat, lengthened to 16": ["--pad-to-multiple-of=16"],
    "packed, bfd": ["--packing"],
    "packed, bfd_split": ["--packing", "--packing-strategy=bfd_split"],
    "packed, padded": ["--packing", "--no-padding-free"],
    "packed, 3 micro-batches": [
        "--packing", "--per-device-train-batch-size=8", "--gradient-accumulation-steps=3",
    ],
}  # fmt: skip
MEMORY = {
    "full checkpointing": ["--gradient-checkpointing=true"],
    "selective checkpointing": ["--gradient-checkpointing=selective"],
    "offloading": ["--activation-offloading"],
    "offloading, full checkpointing": ["--activation-offloading", "--gradient-checkpointing=true"],
}
ATTENTION = {
    "sdpa": ["--attn-implementation=sdpa", "--no-padding-free"],
    "eager": ["--attn-implementation=eager", "--no-padding-free"],
    "sdpa, packed": ["--attn-implementation=sdpa", "--packing"],
}
VARIANTS = CUT | LAYOUT | MEMORY | ATTENTION


def curve(run: Path) -> dict[str, np.ndarray]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["step"] for record in records] == list(range(1, 21))
    names = ("loss", "grad_norm", "entropy", "mean_token_accuracy", "num_trained_tokens", "learning_rate")
    return {name: np.array([record[name] for record in records]) for name in names}


@pytest.fixture(scope="module", params=["nll", "dft"])
def base(request: pytest.FixtureRequest, train_module: Callable[..., Path]) -> tuple[str, dict[str, np.ndarray]]:
    loss_type: str = request.param
    return loss_type, curve(train_module(f"--loss-type={loss_type}", name=f"base-{loss_type}"))


@pytest.fixture
def offloaded(monkeypatch: pytest.MonkeyPatch) -> list[ActivationOffloading]:
    """Offloading moves tensors of any size here: none of this model's reaches the usual threshold."""
    made: list[ActivationOffloading] = []

    def make(model: Any) -> ActivationOffloading:
        made.append(ActivationOffloading(model, min_offload_bytes=0))
        return made[-1]

    monkeypatch.setattr(assemble, "ActivationOffloading", make)
    return made


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_global_batch_gives_the_same_curve(
    variant: str,
    base: tuple[str, dict[str, np.ndarray]],
    train: Callable[..., Path],
    offloaded: list[ActivationOffloading],
) -> None:
    """Loss, gradient norm, entropy, accuracy and counts do not depend on how a batch is cut, laid out or stored."""
    loss_type, expected = base
    actual = curve(train(f"--loss-type={loss_type}", *VARIANTS[variant]))
    assert len(offloaded) == ("--activation-offloading" in VARIANTS[variant])
    assert all(each.statistics.bytes_to_host > 0 for each in offloaded)
    np.testing.assert_array_equal(actual["num_trained_tokens"], expected["num_trained_tokens"])
    np.testing.assert_array_equal(actual["learning_rate"], expected["learning_rate"])
    np.testing.assert_allclose(actual["loss"], expected["loss"], rtol=1e-5)
    np.testing.assert_allclose(actual["grad_norm"], expected["grad_norm"], rtol=1e-4)
    np.testing.assert_allclose(actual["entropy"], expected["entropy"], rtol=1e-5)
    np.testing.assert_allclose(actual["mean_token_accuracy"], expected["mean_token_accuracy"], rtol=1e-6)
    assert abs(drift(actual["loss"], expected["loss"])) < 2e-6


def drift(actual: np.ndarray, expected: np.ndarray) -> float:
    """The mean signed relative difference over the second half: noise cancels in it, a systematic error does not."""
    half = len(expected) // 2
    return float(np.mean((actual[half:] - expected[half:]) / expected[half:]))


def test_a_systematic_error_would_be_seen() -> None:
    curve = np.linspace(5.0, 1.0, 20)
    noise = 1e-6 * np.resize([1.0, -1.0], 20)
    assert abs(drift(curve * (1 + noise), curve)) < 2e-6
    assert abs(drift(curve * (1 + 1e-5), curve)) > 2e-6


def test_the_base_run_learns(base: tuple[str, dict[str, np.ndarray]]) -> None:
    """Equal curves of models that do not move would prove nothing."""
    _, curve = base
    assert curve["mean_token_accuracy"][-1] > curve["mean_token_accuracy"][0] + 0.1
    assert curve["grad_norm"].min() > 1e-3
