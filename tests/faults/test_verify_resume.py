"""`sftctl verify resume`: it proves the promise, and it would find a run that breaks it."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    "options",
    [
        ["--no-packing"],
        ["--streaming", "--set", "~data.test_split_size", "--set", "~eval.eval_steps"],
        pytest.param(["--at=4", "--eval-steps=2", "--loss-type=dft"], marks=pytest.mark.slow),
        pytest.param(["--packing-strategy=wrapped", "--optimizer=muon", "--steps=9"], marks=pytest.mark.slow),
    ],
)
def test_it_proves_the_promise_on_a_configuration(launcher, config, tmp_path, options):
    code, said = launcher.run("verify", "resume", str(config), "--output-dir", str(tmp_path), *options)
    assert code == 0, said
    assert "is the run that was never stopped, bit for bit" in said
    assert "records of metrics.jsonl" in said
    assert "weights, optimiser, random generators" in said
    assert list(tmp_path.iterdir()) == [], "nothing is written in the configuration's own folder"


def test_it_proves_the_promise_of_an_adapter(launcher, config, never_stopped):
    pytest.importorskip("peft")
    model = ["--init=pretrained", f"--model-name-or-path={never_stopped}/final", "--set", "~model.architecture"]
    code, said = launcher.run("verify", "resume", str(config), *model, "--use-peft", "--lora-r=4", "--steps=6")
    assert code == 0, said
    assert "is the run that was never stopped, bit for bit" in said


FORGETS_THE_OPTIMISER = """
import sftctl.engine.saving.checkpoint as module
module.load_optimizer = lambda state, tensors, scalars: None
"""


def test_a_resume_that_forgets_something_is_found(launcher, config):
    code, said = launcher.run("verify", "resume", str(config), "--steps=4", patch=FORGETS_THE_OPTIMISER)
    assert code == 1
    assert "DIFFERENT  step 4: " in said
    assert "tensors-0.safetensors differs" in said
    assert "is not the run that was never stopped" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps=three"], "--steps three: not a number of steps"),
        (["--steps=4", "--at=4"], "--at 4 is not before the end of 4 steps"),
        (["--learning-rate=fast"], "optim.learning_rate"),
    ],
)
def test_what_cannot_be_proven_is_said(launcher, config, options, message):
    code, said = launcher.run("verify", "resume", str(config), *options)
    assert code == 2
    assert message in said
    assert "Traceback" not in said


def test_a_run_that_fails_proves_nothing(launcher, config):
    code, said = launcher.run("verify", "resume", str(config), "--learning-rate=1e30")
    assert code == 1
    assert "run 1 of 2" in said
    assert "bit for bit" not in said
