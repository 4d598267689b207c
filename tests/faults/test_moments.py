"""A run that dies at one exact moment, each moment in turn, goes on as the run that was never stopped.

Random kills (`test_kills.py`) find what nobody thought of; these are the moments that somebody did think of. The
process kills itself with SIGKILL from within, so a moment is exact to the line of code.
"""

from __future__ import annotations

import json
import signal

import pytest

STEPS = 14
DIE = "(__import__('os').kill(__import__('os').getpid(), 9))"


def before(place, name, nth=1):
    """Python that kills its process when `name` of `place` is called for the nth time."""
    return f"""
import importlib
path, _, cls = {place!r}.partition(":")
owner = importlib.import_module(path)
owner = getattr(owner, cls) if cls else owner
call, count = getattr(owner, {name!r}), [0]
def dying(*arguments, **keywords):
    count[0] += 1
    if count[0] == {nth}:
        {DIE}
    return call(*arguments, **keywords)
setattr(owner, {name!r}, dying)
"""


EPOCH_END = f"""
from sftctl.engine.driver import Course
tell = Course._tell_saved
def dying(self):
    tell(self)
    if self.progress.step == 2 * self.inputs.steps_per_epoch:
        {DIE}
Course._tell_saved = dying
"""

IN_AN_EVALUATION = f"""
import sftctl.engine.assemble as module
call = module.evaluate_loss
def dying(model, forward, batches, **keywords):
    count = [0]
    def some(batch, scale):
        {DIE}
    return call(model, some, batches, **keywords)
module.evaluate_loss = dying
"""

IN_A_REMOVAL = f"""
import types, shutil, sftctl.runs.manifest as module
def dying(path, ignore_errors=False):
    if ignore_errors:
        return shutil.rmtree(path, ignore_errors=True)
    next(iter(sorted(path.iterdir()))).unlink()
    {DIE}
module.shutil = types.SimpleNamespace(rmtree=dying)
"""

BEFORE_IT_IS_FINISHED = f"""
from sftctl.runs.directory import RunDirectory
update = RunDirectory.update
def dying(self, phase, **changes):
    if phase == "finished":
        {DIE}
    update(self, phase, **changes)
RunDirectory.update = dying
"""

LATE = "in the twelfth step"

MOMENTS = {
    "in the middle of an accumulation": before("sftctl.engine.training.step:TrainStep", "_accumulate", 10),
    LATE: before("sftctl.engine.training.step:TrainStep", "_accumulate", 23),
    "in an optimiser step": before("torch.optim:AdamW", "step", 6),
    "at the end of an epoch": EPOCH_END,
    "in an evaluation": IN_AN_EVALUATION,
    "between a step's metrics and its checkpoint": before("sftctl.engine.driver:Course", "_save_if_due", 5),
    "in a save, between two tensors": before("sftctl.runs.hashing:HashedFile", "write", 150),
    "in a save, before the manifest": before("sftctl.engine.saving.checkpoint", "write_manifest", 6),
    "in a save, before it gets its name": before("sftctl.engine.saving.checkpoint", "publish", 6),
    "in a save, while an older one is removed": IN_A_REMOVAL,
    "before the final model": before("sftctl.engine.driver", "save_final"),
    "in the final model, before it gets its name": before("sftctl.engine.saving.final_model", "_exchange"),
    "after the final model": BEFORE_IT_IS_FINISHED,
}

SETTINGS = {
    "packed": [],
    "unpacked": ["--no-packing"],
    "padded": ["--no-packing", "--no-padding-free", "--gradient-checkpointing"],
    "lora": [
        "--use-peft", "--lora-r=4", "--lora-dropout=0.1", "--init=pretrained", "--model-name-or-path=BASE",
        "--set", "~model.architecture",
    ],
    "streaming": [
        "--streaming", "--set", "~data.test_split_size", "--set", 'data.eval_datasets=[{path="ROWS", limit=4}]',
    ],
    "best at the end, stopping early": [
        "--eval-steps=1", "--load-best-model-at-end", "--early-stopping-patience=3", "--learning-rate=0.5",
        "--lr-scheduler-type=constant", "--save-total-limit=1",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def words_of(config, rows, never_stopped):
    """The command of a setting; rows and a model stand where it needs them too."""

    def words(setting):
        if setting == "lora":
            pytest.importorskip("peft")
        own = [word.replace("ROWS", str(rows)).replace("BASE", f"{never_stopped}/final") for word in SETTINGS[setting]]
        return ["train", str(config), f"--max-steps={STEPS}", *own]

    return words


@pytest.fixture(scope="module")
def whole(launcher, words_of, tmp_path_factory):
    """The run that nothing happens to, one for each setting."""
    made = {}

    def run_of(setting):
        if setting not in made:
            folder = tmp_path_factory.mktemp("whole")
            code, said = launcher.run(*words_of(setting), "--output-dir", str(folder), "--run-name=whole")
            assert code == 0, said
            made[setting] = folder / "whole"
        return made[setting]

    return run_of


def dies_and_goes_on(launcher, check, words, run, patch):
    """What is compared, and the step whose checkpoint was whole when the process died."""
    died = launcher.start(*words, patch=patch)
    assert died.wait() == -signal.SIGKILL, died.said
    step = check.last_step(run)
    code, said = launcher.run(*words)
    assert code == 0, said
    assert (f"step-{step}, step {step}" in said) == (step > 0), said
    return json.loads((run / "state.json").read_text())


@pytest.mark.parametrize("async_save", ["--async-save", "--no-async-save"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_it_goes_on_bit_for_bit_from_each_moment(launcher, words_of, tmp_path, check, whole, moment, async_save):
    words = [*words_of("packed"), async_save, "--output-dir", str(tmp_path), "--run-name=run"]
    state = dies_and_goes_on(launcher, check, words, tmp_path / "run", MOMENTS[moment])
    assert (state["phase"], state["resumes"]) == ("finished", 1)
    check.same_run(tmp_path / "run", whole("packed"))


@pytest.mark.parametrize("moment", ["in the middle of an accumulation", "at the end of an epoch", "in an evaluation"])
@pytest.mark.parametrize("setting", [name for name in SETTINGS if name not in ("packed", "streaming")])
def test_it_goes_on_bit_for_bit_with_each_setting(launcher, words_of, tmp_path, check, whole, setting, moment):
    words = [*words_of(setting), "--output-dir", str(tmp_path), "--run-name=run"]
    dies_and_goes_on(launcher, check, words, tmp_path / "run", MOMENTS[moment])
    check.same_run(tmp_path / "run", whole(setting))


@pytest.mark.parametrize("moment", ["in the middle of an accumulation", "in an evaluation", LATE])
def test_a_stream_goes_on_bit_for_bit(launcher, words_of, tmp_path, check, whole, moment):
    """In its first pass over the rows, and in a later one."""
    words = [*words_of("streaming"), "--output-dir", str(tmp_path), "--run-name=run"]
    dies_and_goes_on(launcher, check, words, tmp_path / "run", MOMENTS[moment])
    check.same_run(tmp_path / "run", whole("streaming"))


def test_a_run_that_had_stopped_early_makes_no_further_step(launcher, words_of, tmp_path, check, whole):
    """It died between its last checkpoint and its final model, which is the best one's."""
    setting = "best at the end, stopping early"
    words = [*words_of(setting), "--output-dir", str(tmp_path), "--run-name=run"]
    dies_and_goes_on(launcher, check, words, tmp_path / "run", MOMENTS["before the final model"])
    assert check.records(whole(setting))[-1]["step"] < STEPS
    check.same_run(tmp_path / "run", whole(setting))


def test_nothing_half_done_is_left_over(launcher, words_of, tmp_path, check):
    """After deaths in a save, in a removal and in the final model, one after the other in one run."""
    run = tmp_path / "run"
    words = [*words_of("packed"), "--output-dir", str(tmp_path), "--run-name=run"]
    for moment in ("in a save, before it gets its name", "in a save, while an older one is removed",
                   "in the final model, before it gets its name"):  # fmt: skip
        assert launcher.start(*words, patch=MOMENTS[moment]).wait() == -signal.SIGKILL
    code, said = launcher.run(*words)
    assert code == 0, said
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [f"step-{STEPS - 1}", f"step-{STEPS}"]
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == [".lock"]
