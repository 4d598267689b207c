"""Whole runs: what they leave, that a stopped one is the one that was never stopped, and what they learn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftctl.cli.app import main

RECIPES = Path(__file__).parents[2] / "recipes"
TIMES = {"tokens_per_second", "step_seconds", "peak_memory_bytes"}


def records(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def test_a_run_directory_holds_the_whole_run_and_repeats_it(train: Callable[..., Path], tmp_path: Path) -> None:
    run = train("--max-steps=3", "--save-final", "--packing")
    assert {path.name for path in run.iterdir() if not path.name.startswith(".")} == {
        "config.toml", "origins.json", "environment.json", "data.json", "dropped.jsonl", "metrics.jsonl",
        "state.json", "checkpoints", "final",
    }  # fmt: skip
    origins = json.loads((run / "origins.json").read_text())
    assert origins["sft.packing"]["origin"]["name"] == "--packing"
    assert origins["sft.packing"]["shadowed"][0]["value"] is False
    assert json.loads((run / "data.json").read_text())["train"]["plan_hash"]
    assert main(["train", str(run / "config.toml"), "--run-name=again"]) == 0
    assert records(tmp_path / "again") == records(run)


def test_the_final_model_is_that_of_transformers(train: Callable[..., Path]) -> None:
    """It loads without this project, in float32, and holds the masters and not their bf16 copies."""
    run = train("--max-steps=3", "--save-final", "--precision=bf16")
    model = AutoModelForCausalLM.from_pretrained(run / "final")
    tokenizer = AutoTokenizer.from_pretrained(run / "final")
    assert model.dtype == torch.float32
    weight = model.get_input_embeddings().weight
    assert not torch.equal(weight, weight.bfloat16().float())
    ids = tokenizer("1 + 1 = ", return_tensors="pt")
    assert tokenizer.decode(model.generate(**ids, max_new_tokens=3, do_sample=False)[0]).startswith("1 + 1 = ")


@pytest.mark.parametrize(
    "options",
    [
        ["--per-device-train-batch-size=5"],
        ["--per-device-train-batch-size=3", "--gradient-accumulation-steps=2"],
        ["--packing", "--per-device-train-batch-size=1", "--loss-type=dft", "--optimizer=muon"],
        ["--streaming", "--per-device-train-batch-size=5"],
        ["--streaming", "--packing", "--per-device-train-batch-size=2"],
    ],
    ids=["padding-free", "accumulated", "packed, dft, muon", "streamed", "streamed, packed"],
)
def test_a_resumed_run_is_the_run_that_was_never_stopped(
    options: list[str], train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bitwise: every record but the times, every final weight, the ledger; stopped in the middle of an epoch."""
    common = ["--max-steps=9", "--save-steps=4", "--save-final", *options]
    whole = train(*common, name="whole")

    from sftctl.engine import driver

    signals = driver.StopSignals()
    log = driver.Course._log

    def log_and_stop(course: driver.Course, report: Any) -> None:
        log(course, report)
        signals.received = "SIGTERM" if report.step == 7 else None

    with monkeypatch.context() as patch:
        patch.setattr(driver, "StopSignals", lambda: signals)
        patch.setattr(driver.Course, "_log", log_and_stop)
        stopped = train(*common, name="stopped", code=3)
    assert json.loads((stopped / "state.json").read_text())["phase"] == "interrupted"
    assert not (stopped / "final").exists()

    train(*common, name="stopped")
    assert records(stopped) == records(whole)
    for name in ("data.json", "dropped.jsonl"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()
    ours, theirs = (load_file(run / "final" / "model.safetensors") for run in (stopped, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_rows_to_evaluate_on_do_not_see_each_other_where_they_are_packed(
    train: Callable[..., Path], rows: Path
) -> None:
    """Packed, padded and one by one: the same loss over the same targets."""
    common = ["--max-steps=1", "--packing", "--set", f'data.eval_datasets=[{{path="{rows}"}}]', "--eval-steps=1"]
    ways = {
        "packed": ["--eval-packing"],
        "padded": ["--no-eval-packing", "--no-padding-free"],
        "alone": ["--no-eval-packing", "--per-device-eval-batch-size=1"],
    }
    found = {}
    for name, options in ways.items():
        run = train(*common, *options, name=name)
        (record,) = [record for record in records(run) if "eval_loss" in record]
        found[name] = record["eval_loss"], record["eval_num_trained_tokens"]
        bins = json.loads((run / "data.json").read_text())["evaluation"]["bins"]
        assert (bins < 24) == (name == "packed")
    for loss, count in found.values():
        assert loss == pytest.approx(found["alone"][0], rel=1e-5)
        assert count == found["alone"][1]


def test_a_finished_run_says_so(train: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = train("--max-steps=2")
    before = (run / "metrics.jsonl").read_bytes()
    train("--max-steps=2")
    assert "finished" in capsys.readouterr().out
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_the_quickstart_learns(tmp_path: Path) -> None:
    """From nothing to at least 95 of 100 held-out dates, exactly."""
    command = [sys.executable, "-c", "import sys; from sftctl.cli.app import main; sys.exit(main())"]
    words = ["train", str(RECIPES / "quickstart.toml"), "--run-name=quickstart"]
    done = subprocess.run([*command, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    evaluations = [r for r in records(tmp_path / "runs" / "quickstart") if "eval_exact_match" in r]
    assert evaluations[0]["eval_exact_match"] == 0.0
    assert evaluations[-1]["eval_exact_match"] >= 0.95


@pytest.mark.real_model
def test_a_real_chat_model_learns_real_rows(tmp_path: Path) -> None:
    """Eight packed steps in bf16 on question and answer columns; the result answers a prompt."""
    folder, rows = os.environ.get("SFTCTL_TEST_REAL_MODEL"), os.environ.get("SFTCTL_TEST_REAL_ROWS")
    if not folder or not rows:
        pytest.skip("SFTCTL_TEST_REAL_MODEL and SFTCTL_TEST_REAL_ROWS name no model folder and no GSM8K rows")
    source = f'data.datasets=[{{path="{rows}", limit=200, columns={{user="question", assistant="answer"}}}}]'
    options = [
        "--packing", "--max-length=512", "--per-device-train-batch-size=2", "--max-steps=8", "--precision=bf16",
        "--learning-rate=1e-4", "--logging-steps=1", "--run-name=real", f"--output-dir={tmp_path}",
    ]  # fmt: skip
    assert main(["train", f"--model-name-or-path={folder}", "--set", source, *options]) == 0
    losses = [record["loss"] for record in records(tmp_path / "real")]
    assert sum(losses[-3:]) < sum(losses[:3])
    final = tmp_path / "real" / "final"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(final), AutoTokenizer.from_pretrained(final)
    chat = [{"role": "user", "content": "Tom has 3 apples and buys 4. How many has he?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**inputs, max_new_tokens=40, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert len(tokenizer.decode(answer, skip_special_tokens=True).strip()) > 5
