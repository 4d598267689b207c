"""kill -9, SIGTERM, Ctrl-C: nothing complete is lost, and the run that goes on is the one that never stopped."""

from __future__ import annotations

import json
import random
import signal
import time

import pytest


@pytest.mark.parametrize(("kills", "steps"), [(5, 30), pytest.param(60, 600, marks=pytest.mark.slow)])
def test_killed_at_random_times_it_ends_as_the_run_that_was_never_stopped(
    launcher, words, tmp_path, check, kills, steps
):
    """Never before the newest complete checkpoint, and at the end bit for bit the same. The moments are drawn from
    all of a run's life, the claim of its directory and the resume among them; every second one follows a save."""
    words = [*words, f"--max-steps={steps}"]
    whole = launcher.start(*(word.replace("--run-name=run", "--run-name=whole") for word in words))
    draw = random.Random(kills)
    run = tmp_path / "run"
    reached, seconds_to_a_step = 0, 1.0
    for kill in range(kills):
        started = launcher.start(*words)
        began = time.monotonic()
        if kill % 2:
            time.sleep(draw.uniform(0, seconds_to_a_step + 0.1))
        else:
            started.wait_until(lambda reached=reached: check.last_step(run) > reached)
            seconds_to_a_step = time.monotonic() - began
            time.sleep(draw.uniform(0, 0.05))
        started.send(signal.SIGKILL)
        assert started.wait() == -signal.SIGKILL, started.said
        assert check.last_step(run) >= reached
        reached = check.last_step(run)
    assert whole.wait() == 0, whole.said
    code, said = launcher.run(*words)
    assert code == 0, said
    assert json.loads((run / "state.json").read_text())["resumes"] > kills // 3
    check.same_run(run, tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_at_the_next_step_and_leaves_with_a_message(
    launcher, words, tmp_path, never_stopped, check, number
):
    words = [*words, "--save-steps=1000"]  # so that the checkpoint is the signal's
    run = tmp_path / "run"
    started = launcher.start(*words)
    started.wait_until(lambda: (run / "metrics.jsonl").exists() and len(check.records(run)) >= 4)
    started.send(number)
    assert started.wait() == 3
    step = check.last_step(run)
    assert f"stopped: by {number.name} after step {step} of 30; the checkpoint is saved" in started.said
    assert "the same command goes on from it" in started.said
    assert "Traceback" not in started.said
    assert 0 < step < 30
    code, said = launcher.run(*words)
    assert (code, f"going on from {run}/checkpoints/step-{step}" in said) == (0, True), said
    check.same_run(run, never_stopped)


CLOSED = """
import os
from sftctl.engine.driver import Course
log = Course._log
def closing(self, report):
    if report.step == 4:
        reader, writer = os.pipe()
        os.close(reader)
        for number in STREAMS:
            os.dup2(writer, number)
    log(self, report)
Course._log = closing
"""


@pytest.mark.parametrize("streams", ["[1]", "[1, 2]"])
def test_an_output_that_is_closed_stops_the_run_with_a_checkpoint(
    launcher, words, tmp_path, never_stopped, check, streams
):
    """`sftctl train … | head`, a terminal that was closed: as a signal would, and not in the middle."""
    words = [*words, "--save-steps=1000"]
    run = tmp_path / "run"
    code, said = launcher.run(*words, patch=CLOSED.replace("STREAMS", streams))
    assert code == 3, said
    assert "Traceback" not in said
    assert check.last_step(run) == 4
    message = "by the end of its output after step 4 of 30; the checkpoint is saved"
    assert json.loads((run / "state.json").read_text())["message"] == message
    assert (message in said) == (streams == "[1]")
    code, said = launcher.run(*words)
    assert code == 0, said
    check.same_run(run, never_stopped)


SLOW_STEPS = """
import time
from sftctl.engine.training.step import TrainStep
call = TrainStep.__call__
def slow(self, batches, **keywords):
    totals = call(self, batches, **keywords)
    if keywords["learning_rate"] and self.slow_after <= 0:
        time.sleep(60)
    self.slow_after -= 1
    return totals
TrainStep.slow_after = 3
TrainStep.__call__ = slow
"""


def test_a_second_ctrl_c_leaves_at_once(launcher, words, tmp_path, never_stopped, check):
    """In the middle of a step that takes a minute; what was saved before it is there to go on from."""
    run = tmp_path / "run"
    started = launcher.start(*words, patch=SLOW_STEPS)
    started.wait_until(lambda: check.last_step(run) >= 3)
    time.sleep(0.2)
    started.send(signal.SIGINT)
    time.sleep(0.2)
    assert started.is_running()
    began = time.monotonic()
    started.send(signal.SIGINT)
    assert started.wait() == 130, started.said
    assert time.monotonic() - began < 5
    assert "Traceback" not in started.said
    code, said = launcher.run("runs", "show", str(run))
    assert code == 0
    assert "interrupted" in said
    code, said = launcher.run(*words)
    assert code == 0, said
    check.same_run(run, never_stopped)


SLOW_START = """
import time
from sftctl.engine import assemble
assemble.inputs_of = lambda *arguments, **keywords: time.sleep(60)
"""

SWALLOWED = """
import os, signal
from sftctl.engine import assemble
call = assemble.inputs_of
def swallowing(*arguments, **keywords):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        pass
    return call(*arguments, **keywords)
assemble.inputs_of = swallowing
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_step_leaves_at_once_and_leaves_nothing(launcher, words, tmp_path, number):
    started = launcher.start(*words, patch=SLOW_START)
    started.wait_until(lambda: "prepare the rows" in started.said)
    started.send(number)
    assert started.wait() == 130
    assert "stopped" in started.said
    assert "Traceback" not in started.said
    assert list(tmp_path.iterdir()) == []


def test_a_signal_that_a_library_swallows_stops_the_run_at_its_first_step(
    launcher, words, tmp_path, never_stopped, check
):
    code, said = launcher.run(*words, patch=SWALLOWED)
    assert (code, "stopped: by SIGINT after step 1 of 30" in said) == (3, True), said
    assert launcher.run(*words)[0] == 0
    check.same_run(tmp_path / "run", never_stopped)


SLOW_DISK = """
import time
from sftctl.runs.hashing import HashedFile
write = HashedFile.write
def slow(self, data):
    if self.saves >= 3:
        time.sleep(60)
    write(self, data)
finish = HashedFile.finish
def counted(self):
    HashedFile.saves += 1
    return finish(self)
HashedFile.saves, HashedFile.write, HashedFile.finish = 0, slow, counted
"""


@pytest.mark.parametrize("async_save", ["--async-save", "--no-async-save"])
def test_a_second_ctrl_c_does_not_wait_for_a_save(launcher, words, tmp_path, never_stopped, check, async_save):
    run = tmp_path / "run"
    started = launcher.start(*words, async_save, patch=SLOW_DISK)
    started.wait_until(lambda: (run / "checkpoints" / ".step-4.writing").exists())
    started.send(signal.SIGINT)
    time.sleep(0.3)
    assert started.is_running()
    began = time.monotonic()
    started.send(signal.SIGINT)
    assert started.wait() == 130, started.said
    assert time.monotonic() - began < 5
    assert "Traceback" not in started.said
    code, said = launcher.run(*words)
    assert (code, f"going on from {run}/checkpoints/step-3," in said) == (0, True), said
    check.same_run(run, never_stopped)


def test_runs_list_tells_a_killed_run_from_a_running_one(launcher, words, tmp_path, check):
    run = tmp_path / "run"
    started = launcher.start(*words, patch=SLOW_STEPS)
    started.wait_until(lambda: check.last_step(run) >= 3)
    _, running = launcher.run("runs", "list", str(tmp_path))
    started.send(signal.SIGKILL)
    started.wait()
    _, killed = launcher.run("runs", "list", str(tmp_path))
    assert " running " in running
    assert " interrupted " in killed
    _, shown = launcher.run("runs", "show", str(run))
    assert f"--resume {run}" in shown


def test_the_command_that_runs_show_prints_goes_on(launcher, words, tmp_path, never_stopped, check):
    run = tmp_path / "run"
    started = launcher.start(*words)
    started.wait_until(lambda: check.last_step(run) >= 5)
    started.send(signal.SIGKILL)
    started.wait()
    _, shown = launcher.run("runs", "show", str(run))
    command = shown.split("sftctl train ", 1)[1].split("\n")[0].split()
    code, said = launcher.run("train", *command)
    assert code == 0, said
    check.same_run(run, never_stopped)


def test_a_finished_run_says_so_and_changes_nothing(launcher, words, never_stopped, config):
    before = {path: path.stat().st_mtime_ns for path in never_stopped.rglob("*") if path.is_file()}
    words = ["train", str(config), "--output-dir", str(never_stopped.parent), "--run-name=whole"]
    code, said = launcher.run(*words)
    assert code == 0
    assert f"this run is finished already: {never_stopped}" in said
    assert before == {path: path.stat().st_mtime_ns for path in never_stopped.rglob("*") if path.is_file()}
