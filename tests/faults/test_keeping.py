"""Which checkpoints are kept, the best one at the end, stopping early; and that no secret reaches the disk."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file


def steps_of(run):
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").iterdir())


def test_the_newest_ones_are_kept(launcher, words, tmp_path):
    code, said = launcher.run(*words, "--max-steps=6", "--save-total-limit=2")
    assert code == 0, said
    assert steps_of(tmp_path / "run") == [5, 6]


def test_the_best_checkpoint_is_kept_and_becomes_the_final_model(launcher, words, tmp_path, check):
    """A learning rate that ruins the model: the best evaluation is not the last, and the final model is its."""
    code, said = launcher.run(
        *words, "--max-steps=12", "--eval-steps=2", "--learning-rate=1.0", "--save-total-limit=1",
        "--load-best-model-at-end", "--lr-scheduler-type=constant",
    )  # fmt: skip
    assert code == 0, said
    run = tmp_path / "run"
    losses = {record["step"]: record["eval_loss"] for record in check.records(run) if "eval_loss" in record}
    best = min(losses, key=losses.get)
    assert best < 12
    assert steps_of(run) == [best, 12]
    assert json.loads((run / "state.json").read_text())["metrics"]["best_metric"] == losses[best]
    stored = load_file(run / "checkpoints" / f"step-{best}" / "tensors-0.safetensors")
    final = load_file(run / "final" / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    assert (stored[f"weights.{name}"] == final[name]).all()


BEST_GOES_BAD = """
from sftctl.engine.driver import Course
finish = Course._finish
def damaged(self):
    self.checkpointer.wait()
    path = self.checkpointer.best() / "tensors-0.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    return finish(self)
Course._finish = damaged
"""


def test_a_best_checkpoint_that_went_bad_is_named_and_without_it_the_last_one_is_final(launcher, words, tmp_path):
    words = [*words, "--max-steps=6", "--eval-steps=2", "--learning-rate=1.0", "--lr-scheduler-type=constant",
             "--load-best-model-at-end"]  # fmt: skip
    code, said = launcher.run(*words, patch=BEST_GOES_BAD)
    assert code == 1, said
    assert "Traceback" not in said
    (best,) = {step for step in steps_of(tmp_path / "run") if f"step-{step} is damaged" in said}
    assert best < 6
    shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{best}")
    code, said = launcher.run(*words)
    assert code == 0, said
    assert "the checkpoint of the best evaluation is not here" in said
    stored = load_file(tmp_path / "run" / "checkpoints" / "step-6" / "tensors-0.safetensors")
    final = load_file(tmp_path / "run" / "final" / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    assert (stored[f"weights.{name}"] == final[name]).all()


def test_a_run_stops_early_where_nothing_gets_better(launcher, words, tmp_path, check):
    code, said = launcher.run(
        *words, "--eval-steps=1", "--learning-rate=0.5", "--early-stopping-patience=2", "--lr-scheduler-type=constant"
    )
    assert code == 0, said
    assert "stopped early: no better one in 2 evaluations" in said
    assert check.records(tmp_path / "run")[-1]["step"] < 30


SECRETS = [
    ["--set", 'env.HF_TOKEN="hf_sesameopensesameopen"'],
    ["--set", 'env.WANDB_API_KEY="sesame-of-forty-characters"', "--set", 'env.DB_PASSWORD="sesame"'],
    ["--set", 'env.A_URL="https://user:sesame@example.org"', "--tags", "hf_sesameopensesameopen"],
]


def files_with(folder, word):
    return [path for path in folder.rglob("*") if path.is_file() and word in path.read_bytes()]


@pytest.mark.parametrize("words_with_secrets", SECRETS, ids=lambda words: words[1].partition("=")[0])
def test_no_secret_reaches_the_disk(launcher, words, tmp_path, words_with_secrets):
    """Not the configuration, the origins, the command line, the manifests, nor the state: the whole directory is
    searched, of a run that is interrupted, resumed and finished, and of prepared data beside it."""
    words = [*words, "--max-steps=6", f"--cache-dir={tmp_path}/cache", *words_with_secrets]
    code, said = launcher.run(*words, patch=STOPPED)
    assert code == 3, said
    assert "sesame" not in said
    assert files_with(tmp_path, b"sesame") == []
    code, said = launcher.run(*words)
    assert code == 0, said
    assert "sesame" not in said
    assert files_with(tmp_path, b"sesame") == []
    assert len(files_with(tmp_path, b"***")) >= 3, "what was searched for is there, cleared"


STOPPED = """
import os, signal
from sftctl.engine.driver import Course
log = Course._log
def stopping(self, report):
    log(self, report)
    if report.step == 3:
        os.kill(os.getpid(), signal.SIGTERM)
Course._log = stopping
"""
