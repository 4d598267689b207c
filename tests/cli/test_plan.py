"""`sftctl plan`: the table, the other form, its exit codes, and what it says when a run has run out of memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sftctl.cli.app import main

CONFIG = """
model.init = "random"
model.tokenizer = "bytes"
model.architecture.model_type = "llama"
model.architecture.hidden_size = 32
model.architecture.intermediate_size = 64
model.architecture.num_hidden_layers = 2
model.architecture.num_attention_heads = 4
data.datasets = [{ path = "rows.jsonl" }]
train.per_device_train_batch_size = 4
train.gradient_checkpointing = false
train.precision = "fp32"
sft.max_length = 256
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(CONFIG)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "abc"}) + "\n")
    return path


def test_a_run_that_fits(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(config), "--device=cuda", "--memory=1GB"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:6]] == ["weights", "optimiser", "gradients", "activations", "head"]
    assert lines[6].startswith("peak")
    assert "parameters train, in fp32; 1,024 tokens a micro-batch" in lines[7]
    assert lines[8].startswith("the cuda device has 1.0 GB: it fits, ")


def test_a_run_that_does_not_and_the_change_that_does(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(config), "--device=cuda", "--memory=1GB", "--format=json"]) == 0
    whole: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert whole["peak_bytes"] == sum(whole["bytes"].values())
    memory = whole["peak_bytes"] - 1
    assert main(["plan", str(config), "--device=cuda", f"--memory={memory}"]) == 1
    said = capsys.readouterr().out
    assert "are missing" in said
    assert "the cheapest change that fits: set train.per_device_train_batch_size = 2 and " in said
    assert "train.gradient_accumulation_steps = 2, which trains the same in " in said
    assert main(["plan", str(config), "--device=cuda", f"--memory={memory}", "--format=json"]) == 1
    change = json.loads(capsys.readouterr().out)["change"]
    assert change["peak_bytes"] <= memory
    assert change["trains_the_same"]
    assert main(["plan", str(config), "--device=cuda", "--memory=1kB"]) == 1
    assert "no change of batch, checkpointing, adapter or length is enough" in capsys.readouterr().out


def test_on_a_cpu_the_process_itself_is_counted(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(config), "--device=cpu", "--format=json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["bytes"]["libraries"] > 10**8
    assert planned["memory_bytes"] > 10**9


def test_an_amount_that_is_none_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(config), "--memory=much"]) == 2
    assert "'much' is no amount of memory" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert main(["plan", str(config), "--device=cuda"]) == 2
        assert "this machine has no CUDA device" in capsys.readouterr().err


def test_a_run_out_of_memory_says_the_plan_and_the_cheapest_change(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sftctl.engine.training import step

    def run_out(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(step.TrainStep, "_accumulate", run_out)
    assert main(["train", str(config), f"--output-dir={tmp_path}", "--run-name=run"]) == 1
    said = capsys.readouterr().err
    assert "out of memory: CUDA out of memory. Tried to allocate 2.00 GiB.; the plan has " in said
    assert "optimiser " in said
    assert "help: set " in said
