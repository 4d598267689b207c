"""`train.torch_compile` changes how fast blocks run and not what they learn, whatever keeps the activations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch._dynamo.utils import counters

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning"),  # torch's own import
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),  # dynamo looks at each input
    pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs a C++ compiler"),
]

KEPT = {
    "all activations": [],
    "full checkpointing": ["--gradient-checkpointing=true"],
    "selective checkpointing": ["--gradient-checkpointing=selective"],
    "offloading": ["--activation-offloading"],
    "packed, two micro-batches": ["--packing", "--per-device-train-batch-size=6", "--gradient-accumulation-steps=2"],
}


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def eager(train_module: Callable[..., Path]) -> list[float]:
    return losses(train_module(name="eager"))


@pytest.mark.parametrize("kept", KEPT)
def test_compiled_blocks_learn_the_same(kept: str, eager: list[float], train: Callable[..., Path]) -> None:
    """Loss within 1e-5 at each of 20 steps; and few graphs, though nearly every batch has another length."""
    counters.clear()
    compiled = losses(train("--torch-compile", *KEPT[kept]))
    np.testing.assert_allclose(compiled, eager, rtol=1e-5)
    assert counters["stats"]["unique_graphs"] <= 8
