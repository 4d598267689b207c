"""Whole runs through the command line, on a model and data small enough for seconds."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from sftctl.cli.app import main

sys.path.insert(0, str(Path(__file__).parent))  # for what test files share
sys.path.insert(0, str(Path(__file__).parents[1] / "faults"))  # for the launcher, which is a program too

from launcher import Launcher

ROWS = 24

ON_A_GPU = {"test_adapters", "test_compile", "test_devices", "test_equivalence", "test_training"}
"""Test files whose runs take the GPU where there is one: there `pytest -m cuda` runs them too."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With a GPU, ranks take one each, and the launcher of these tests forks, which CUDA does not survive."""
    if not torch.cuda.is_available():
        return
    for item in items:
        if "launcher" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason="forks: run it with CUDA_VISIBLE_DEVICES="))
        elif item.path.parent == Path(__file__).parent and item.path.stem in ON_A_GPU:
            item.add_marker(pytest.mark.cuda)


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Runs in processes of their own, without importing torch for each."""
    launcher = Launcher(tmp_path_factory.mktemp("logs"))
    yield launcher
    launcher.close()


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sums as prompt and completion, of lengths that differ, so that padding and packing have work to do."""
    draw = random.Random(7)
    path = tmp_path_factory.mktemp("rows") / "sums.jsonl"
    lines = []
    for _ in range(ROWS):
        terms = [draw.randrange(100) for _ in range(draw.randrange(1, 9))]
        row = {"prompt": " + ".join(map(str, terms)) + " = ", "completion": str(sum(terms))}
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory, rows: Path) -> Path:
    """Every step takes all rows: 24 rows a step, whatever they are cut into."""
    path = tmp_path_factory.mktemp("config") / "tiny.toml"
    path.write_text(
        f"""
[model]
init = "random"
tokenizer = "bytes"

[model.architecture]
model_type = "llama"
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
max_position_embeddings = 128

[[data.datasets]]
path = "{rows}"

[sft]
max_length = 64

[optim]
learning_rate = 3e-3

[train]
max_steps = 20
per_device_train_batch_size = {ROWS}
precision = "fp32"
gradient_checkpointing = false

[checkpoint]
save_final = false
async_save = false

[log]
logging_steps = 1
""",
        encoding="utf-8",
    )
    return path


def _trainer(config: Path, folder: Path) -> Callable[..., Path]:
    def run(*options: str, name: str = "run", code: int = 0) -> Path:
        words = ["train", str(config), "--output-dir", str(folder), "--run-name", name, *options]
        assert main(words) == code
        return folder / name

    return run


@pytest.fixture
def train(config: Path, tmp_path: Path) -> Callable[..., Path]:
    """`sftctl train tiny.toml OPTIONS`, in this process; gives the run directory."""
    return _trainer(config, tmp_path)


@pytest.fixture(scope="module")
def train_module(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The same, for runs that several tests look at."""
    return _trainer(config, tmp_path_factory.mktemp("runs"))
