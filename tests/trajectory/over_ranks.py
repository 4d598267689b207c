"""What the tests of several processes share: how a run is cut among them, stopped, and held against another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from sftctl.cli.verify.curves import difference, same_tokens

ONE = ["--nproc-per-node=1", "--per-device-train-batch-size=24"]
TWO = ["--nproc-per-node=2", "--per-device-train-batch-size=12"]
THREE = ["--nproc-per-node=3", "--per-device-train-batch-size=8"]
TIED = ["--set", "model.architecture.tie_word_embeddings=true"]

Run = Callable[..., tuple[int, str, Path]]
"""`run("name", OPTIONS)`: the exit code, what was said, and the run directory."""

STOP_AFTER_SEVEN = """
import os, signal
from sftctl.engine import driver
log = driver.Course._log
def log_and_stop(course, report):
    log(course, report)
    if report.step == 7 and course.ranks.rank == course.ranks.world_size - 1:
        os.kill(os.getpid(), signal.SIGTERM)
driver.Course._log = log_and_stop
"""
"""The signal reaches the last rank alone: all stop."""


def runner(launcher: Any, config: Path, folder: Path, *common: str) -> Run:
    def train(name: str, *options: str, patch: str = "") -> tuple[int, str, Path]:
        words = ["train", str(config), f"--output-dir={folder}", f"--run-name={name}", *common, *options]
        code, said = launcher.run(*words, patch=patch)
        return code, said, folder / name

    return train


def curve(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if "loss" in record]


def assert_same_curve(path: Path, expected: Path) -> None:
    """The same tokens in every step, and loss and gradient norm within the bounds of the contract."""
    assert same_tokens(curve(path), curve(expected))
    found = difference(curve(path), curve(expected))
    assert found.passed, found


def assert_same_weights(path: Path, expected: Path, *, atol: float = 5e-5) -> None:
    """Weights that each moved by up to 0.06: where a gradient is next to nothing, Adam makes a step of its noise."""
    ours, theirs = load_file(path), load_file(expected)
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-4, atol=atol, msg=lambda text, name=name: name + text)
