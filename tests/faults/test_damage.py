"""Damaged checkpoints, changed data, changed settings, a changed clock, NaN and memory: seen, said, survived."""

from __future__ import annotations

import json
import os
import shutil

import pytest


@pytest.fixture
def killed(launcher, words, tmp_path, check):
    """A run that was killed with two checkpoints. Gives the directory and its last step."""
    run = tmp_path / "run"
    started = launcher.start(*words)
    started.wait_until(lambda: check.last_step(run) >= 5)
    started.send(9)
    started.wait()
    for leftover in (run / "checkpoints").glob(".step-*"):
        shutil.rmtree(leftover)
    return run, check.last_step(run)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize(
    ("damage", "name", "said_of_it"),
    [
        (flip_a_bit, "tensors-0.safetensors", "tensors-0.safetensors is not what was written"),
        (cut, "tensors-0.safetensors", "tensors-0.safetensors has "),
        (os.unlink, "random-0.json", "random-0.json is missing"),
        (os.unlink, "manifest.json", "it has no manifest.json"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(launcher, words, killed, never_stopped, check, damage, name, said_of_it):
    run, step = killed
    damage(run / "checkpoints" / f"step-{step}" / name)
    code, said = launcher.run(*words)
    assert code == 0, said
    assert f"step-{step} is damaged: {said_of_it}" in said.replace("\n", " ")
    assert f"going on from {run}/checkpoints/step-{step - 1}," in said
    check.same_run(run, never_stopped)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_again_unseen(launcher, words, killed, check):
    run, _ = killed
    before = (run / "metrics.jsonl").read_bytes()
    for folder in (run / "checkpoints").iterdir():
        flip_a_bit(folder / "tensors-0.safetensors")
    code, said = launcher.run(*words)
    assert code == 2, said
    assert "is whole" in said
    assert "to start again from step 0" in said
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_run_that_saved_nothing_says_that_it_begins_again(launcher, words, tmp_path, never_stopped, check):
    run = tmp_path / "run"
    started = launcher.start(*words, "--save-steps=1000")
    started.wait_until(lambda: (run / "metrics.jsonl").exists() and len(check.records(run)) >= 3)
    started.send(9)
    started.wait()
    code, said = launcher.run(*words)
    assert code == 0, said
    assert "no checkpoint was saved before: starting again from step 0" in said
    check.same_run(run, never_stopped)


def test_what_a_crash_left_half_written_is_removed(launcher, words, killed, never_stopped, check):
    run, step = killed
    leftover = run / "checkpoints" / f".step-{step + 1}.writing"
    shutil.copytree(run / "checkpoints" / f"step-{step}", leftover)
    (leftover / "manifest.json").unlink()
    code, said = launcher.run(*words)
    assert code == 0, said
    assert f"removed {leftover}" in said
    check.same_run(run, never_stopped)


def test_metrics_cut_in_the_middle_of_a_line_are_mended(launcher, words, killed, never_stopped, check):
    run, _ = killed
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 99, "lo')
    assert launcher.run(*words)[0] == 0
    check.same_run(run, never_stopped)


def test_data_that_changed_is_refused_and_nothing_is_touched(launcher, rows, tmp_path, check):
    mine = tmp_path / "mine.jsonl"
    mine.write_bytes(rows.read_bytes())
    config = check.write_config(tmp_path / "own.toml", mine)
    words = ["train", str(config), "--output-dir", str(tmp_path), "--run-name=run"]
    started = launcher.start(*words)
    started.wait_until(lambda: check.last_step(tmp_path / "run") >= 2)
    started.send(9)
    started.wait()
    mine.write_text(mine.read_text().replace(' = "', ' =  "', 1))
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    code, said = launcher.run(*words)
    assert code == 2
    assert "the data is not the one of " in said
    assert "restore the files" in said
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    mine.write_bytes(rows.read_bytes())
    assert launcher.run(*words)[0] == 0


def test_settings_that_changed_are_named_and_those_that_may_change_do(launcher, words, killed, check, never_stopped):
    code, said = launcher.run(*words, "--learning-rate=1e-4", "--max-length=32", "--save-steps=2")
    assert code == 2
    assert "optim.learning_rate" in said
    assert "is 0.0001 now and was 0.003 in " in said
    assert "sft.max_length" in said
    assert "save_steps" not in said
    code, said = launcher.run(*words, "--save-steps=4", "--save-total-limit=1")
    assert code == 0, said
    check.same_run(killed[0], never_stopped)


CLOCK = """
import datetime as module
class Past(module.datetime):
    @classmethod
    def now(cls, tz=None):
        return module.datetime.fromtimestamp(86400.0, tz)
import time, sftctl.runs.directory, sftctl.runs.state
sftctl.runs.directory.datetime = sftctl.runs.state.datetime = Past
time.time = lambda: 86400.0
"""


def test_a_clock_that_jumped_back_changes_nothing(launcher, words, killed, never_stopped, check):
    code, said = launcher.run(*words, patch=CLOCK)
    assert code == 0, said
    assert json.loads((killed[0] / "state.json").read_text())["updated"].startswith("1970-01-02")
    check.same_run(killed[0], never_stopped)


AT_STEP = """
from sftctl.engine.training.step import TrainStep
call, count = TrainStep.__call__, [0]
def faulty(self, batches, **keywords):
    count[0] += 1
    if count[0] == 4:
        FAULT
    return call(self, batches, **keywords)
TrainStep.__call__ = faulty
"""

NAN = AT_STEP.replace("FAULT", "next(iter(self.weights.named.values())).data.fill_(float('nan'))")


def test_a_nan_stops_the_run_and_never_reaches_a_checkpoint(launcher, words, tmp_path, never_stopped, check):
    run = tmp_path / "run"
    code, said = launcher.run(*words, patch=NAN)
    assert code == 1
    assert "the loss is nan" in said
    assert "Traceback" not in said
    assert check.last_step(run) == 3
    assert json.loads((run / "state.json").read_text())["phase"] == "failed"
    code, said = launcher.run(*words)
    assert code == 0, said
    check.same_run(run, never_stopped)


MEMORY = AT_STEP.replace(
    "FAULT",
    "import resource, torch\n"
    "        used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
    "        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 28), used + (1 << 28)))\n"
    "        torch.ones(1 << 30)",
)


def test_memory_that_runs_out_is_said_and_the_run_goes_on_from_its_checkpoint(
    launcher, words, tmp_path, never_stopped, check
):
    run = tmp_path / "run"
    code, said = launcher.run(*words, patch=MEMORY)
    assert code == 1, said
    assert "Traceback" not in said
    assert "memory" in said
    assert check.last_step(run) == 3
    assert launcher.run(*words)[0] == 0
    check.same_run(run, never_stopped)
