"""Checkpoints: what is saved comes back bit for bit; what is damaged or of another run does not come in."""

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

from sftctl.engine.ranks.distributed import Ranks
from sftctl.engine.saving import storage
from sftctl.engine.saving.checkpoint import Checkpointer
from sftctl.engine.saving.training_state import TrainingState
from sftctl.engine.training.optim import OPTIMIZERS, parameters_of
from sftctl.errors import RunError
from sftctl.runs.hashing import hash_file
from sftctl.runs.manifest import (
    FileRecord,
    Manifest,
    leftovers,
    list_steps,
    read_manifest,
    step_folder,
    verify,
    write_manifest,
)

ALONE = Ranks(0, 1, torch.device("cpu"))
SETTINGS = {"optim": {"learning_rate": 0.01, "betas": (0.9, 0.99)}, "checkpoint": {"save_steps": 5}}
IDENTITY = {"data": "d" * 32, "plan": "p" * 32}
HYPERPARAMETERS = {"learning_rate": 0.01, "weight_decay": 0.1, "betas": (0.9, 0.99), "epsilon": 1e-8}


class Model(nn.Module):
    """A matrix, a vector, dropout, and names that a shorter name is the beginning of."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 8)
        self.a_norm = nn.LayerNorm(8)
        self.b = nn.Linear(8, 3, bias=False)
        self.drop = nn.Dropout(0.3)

    def forward(self, x):
        return self.b(self.drop(self.a_norm(self.a(x)).tanh()))


class Training:
    """A small run: its steps depend on the weights, the optimiser, and three random generators."""

    def __init__(self, optimizer="adamw", seed=0):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        self.model = Model()
        named = dict(self.model.named_parameters())
        make = OPTIMIZERS[optimizer]
        self.optimizer = make(list(named.items()), **parameters_of(HYPERPARAMETERS, make))
        self.state = TrainingState(named, self.optimizer)

    def steps(self, count):
        for _ in range(count):
            x = torch.randn(5, 6) * random.random() + float(np.random.standard_normal())
            self.model(x).square().mean().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return self

    def weights(self):
        return {name: tensor.detach().clone() for name, tensor in self.state.weights.items()}


def checkpointer(folder, training, **changes):
    keywords = {"ranks": ALONE, "settings": SETTINGS, "identity": IDENTITY, "note": lambda text: None, **changes}
    return Checkpointer(folder / "checkpoints", training.state, **keywords)


def saved(folder, *steps, **changes):
    """A run that saved at each of `steps`."""
    training = Training()
    saver = checkpointer(folder, training, **changes)
    done = 0
    for step in steps:
        training.steps(step - done)
        done = step
        saver.save(step, meta={"step": step})
    saver.wait()
    return training


def resumed(folder, optimizer="adamw", notes=None, **changes):
    training = Training(optimizer, seed=123)
    note = (lambda text: None) if notes is None else notes.append
    loader = checkpointer(folder, training, note=note, **changes)
    checkpoint = loader.latest()
    loader.load(checkpoint)
    loader.restore_random(checkpoint)
    return training, checkpoint


def assert_equal(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


# ---------------------------------------------------------------------- coming back


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "sgd", "muon"])
@pytest.mark.parametrize("async_save", [False, True])
def test_a_resumed_run_is_bitwise_the_one_that_never_stopped(tmp_path, optimizer, async_save):
    whole = Training(optimizer).steps(7).weights()
    stopped = Training(optimizer).steps(3)
    checkpointer(tmp_path, stopped, async_save=async_save).save(3, meta={"num_tokens": 99}, wait=True)
    again, checkpoint = resumed(tmp_path, optimizer)
    assert (checkpoint.step, checkpoint.meta) == (3, {"num_tokens": 99})
    assert_equal(again.steps(4).weights(), whole)


def test_a_checkpoint_before_the_first_step_has_no_optimiser_state_and_loads(tmp_path):
    whole = Training().steps(2).weights()
    checkpointer(tmp_path, Training()).save(0, meta={})
    again, _ = resumed(tmp_path)
    assert_equal(again.steps(2).weights(), whole)


def test_an_asynchronous_save_holds_the_weights_of_its_step(tmp_path):
    training = Training().steps(2)
    before = training.weights()
    saver = checkpointer(tmp_path, training, async_save=True)
    saver.save(2, meta={})
    training.steps(3)  # while the thread may still be writing
    saver.wait()
    again, _ = resumed(tmp_path)
    assert_equal(again.weights(), before)


def test_the_files_do_not_depend_on_how_they_were_saved(tmp_path):
    hashes = []
    for async_save in (False, True):
        folder = tmp_path / str(async_save)
        folder.mkdir()
        saved(folder, 2, async_save=async_save)
        hashes.append(verify(step_folder(folder / "checkpoints", 2)).files)
    assert hashes[0] == hashes[1]


def test_a_plan_holds_while_every_tensor_lies_where_it_lay(tmp_path, monkeypatch):
    """Before the first step there are no states to plan for; then one plan serves, until a tensor is another one."""
    plans = []
    call = storage.dcp_save
    monkeypatch.setattr(storage, "dcp_save", lambda *a, **k: (plans.append(1), call(*a, **k)))
    training = Training()
    saver = checkpointer(tmp_path, training, save_total_limit=1)
    saver.save(0, meta={})
    for step in range(1, 4):
        training.steps(1)
        saver.save(step, meta={})
    assert len(plans) == 2
    again, _ = resumed(tmp_path)
    assert_equal(again.weights(), training.weights())
    weight = training.state.weights["b.weight"]
    training.optimizer.state[weight]["exp_avg"] = torch.full_like(weight, 7.0)
    saver.save(4, meta={})
    assert len(plans) == 3
    again, _ = resumed(tmp_path)
    assert again.optimizer.state[again.state.weights["b.weight"]]["exp_avg"].eq(7.0).all()


def test_buffers_come_back_too(tmp_path):
    training = Training()
    buffers = {"scale": torch.tensor(3.0), "empty": torch.zeros(0, 4), "flags": torch.tensor([True, False])}
    training.state = TrainingState(training.state.weights, training.optimizer, buffers)
    checkpointer(tmp_path, training).save(1, meta={})
    other = Training()
    fresh = {name: torch.zeros_like(tensor) for name, tensor in buffers.items()}
    other.state = TrainingState(other.state.weights, other.optimizer, fresh)
    loader = checkpointer(tmp_path, other)
    loader.load(loader.latest())
    assert_equal(fresh, buffers)


def test_weights_alone_leave_the_optimiser(tmp_path):
    training = saved(tmp_path, 2)
    before = training.weights()
    training.steps(2)
    moments = training.optimizer.state[training.state.weights["b.weight"]]["exp_avg"].clone()
    loader = checkpointer(tmp_path, training)
    loader.load_weights(loader.latest())
    assert_equal(training.weights(), before)
    assert torch.equal(training.optimizer.state[training.state.weights["b.weight"]]["exp_avg"], moments)


@pytest.mark.parametrize("async_save", [False, True])
def test_what_is_complete_is_told_once_and_not_before(tmp_path, async_save):
    saver = checkpointer(tmp_path, Training().steps(1), async_save=async_save)
    assert saver.published() == []
    path = saver.save(1, meta={}, wait=True)
    assert saver.published() == [path]
    (tmp_path / "checkpoints" / "step-2").write_text("a file in the way")
    with pytest.raises(RunError):
        saver.save(2, meta={}, wait=True)
    assert saver.published() == []


def test_saving_the_same_step_twice_writes_once(tmp_path):
    training = Training().steps(1)
    saver = checkpointer(tmp_path, training)
    path = saver.save(1, meta={})
    inode = path.stat().st_ino
    assert saver.save(1, meta={}) == path
    assert path.stat().st_ino == inode


def test_the_tensors_are_an_ordinary_safetensors_file(tmp_path):
    from safetensors.torch import load_file

    training = saved(tmp_path, 2)
    stored = load_file(step_folder(tmp_path / "checkpoints", 2) / "tensors-0.safetensors")
    assert torch.equal(stored["weights.a.weight"], training.state.weights["a.weight"])
    assert stored["optimizer.a.bias.step"].shape == ()


def test_nothing_in_a_checkpoint_is_unpickled(tmp_path, monkeypatch):
    """Unpickling is made impossible, and a pickle that somebody put there is not looked at."""
    saved(tmp_path, 2)
    folder = step_folder(tmp_path / "checkpoints", 2)
    (folder / ".metadata").write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")

    def refuse(*arguments, **keywords):
        raise AssertionError("something was unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    loader = checkpointer(tmp_path, Training())
    loader.load(loader.latest())


# ---------------------------------------------------------------------- what is damaged


FILES = ["manifest.json", "index.json", "scalars.json", "random-0.json", "tensors-0.safetensors"]


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_in_half(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [flip_a_bit, cut_in_half, os.unlink])
def test_a_damaged_checkpoint_is_passed_over_and_said_to_be(tmp_path, damage, name):
    saved(tmp_path, 2, 4)
    damage(step_folder(tmp_path / "checkpoints", 4) / name)
    notes = []
    _, checkpoint = resumed(tmp_path, notes=notes)
    assert checkpoint.step == 2
    (note,) = notes
    assert "step-4 is damaged: " in note
    assert name in note


def test_nothing_saved_is_none_and_nothing_whole_is_refused(tmp_path):
    """A run of days must not begin again unseen because its checkpoints have gone bad."""
    assert checkpointer(tmp_path / "nowhere", Training()).latest() is None
    saved(tmp_path, 2, 4)
    for step in (2, 4):
        flip_a_bit(step_folder(tmp_path / "checkpoints", step) / "manifest.json")
    with pytest.raises(
        RunError, match=r"none of the 2 checkpoints in .* is whole; restore one, or remove .*checkpoints"
    ):
        checkpointer(tmp_path, Training()).latest()


def test_a_checkpoint_under_the_name_of_another_step_is_passed_over(tmp_path):
    saved(tmp_path, 2, 4)
    shutil.copytree(step_folder(tmp_path / "checkpoints", 2), step_folder(tmp_path / "checkpoints", 9))
    notes = []
    _, checkpoint = resumed(tmp_path, notes=notes)
    assert (checkpoint.step, len(notes)) == (4, 1)
    assert "step-9 is damaged: it is of step 2" in notes[0]


def test_what_an_older_crash_left_is_removed_and_said(tmp_path):
    saved(tmp_path, 2)
    for name in (".step-4.writing", ".step-1.removing"):
        (tmp_path / "checkpoints" / name).mkdir()
        (tmp_path / "checkpoints" / name / "tensors-0.safetensors").write_bytes(b"half")
    notes = []
    resumed(tmp_path, notes=notes)
    assert leftovers(tmp_path / "checkpoints") == []
    assert [note.split("/")[-1] for note in notes] == [
        ".step-1.removing, which was not whole when an earlier run ended",
        ".step-4.writing, which was not whole when an earlier run ended",
    ]


def test_a_damaged_newer_one_never_costs_the_good_one(tmp_path):
    """With a limit of one: the damaged step 4 does not count, and is written again when the run comes there."""
    saved(tmp_path, 2, 4, save_total_limit=2)
    flip_a_bit(step_folder(tmp_path / "checkpoints", 4) / "index.json")
    again, checkpoint = resumed(tmp_path, save_total_limit=1)
    saver = checkpointer(tmp_path, again, save_total_limit=1)
    saver.load(checkpoint)
    saver.save(3, meta={})
    assert list_steps(tmp_path / "checkpoints") == [3, 4]
    saver.save(4, meta={})
    assert list_steps(tmp_path / "checkpoints") == [4]
    assert verify(step_folder(tmp_path / "checkpoints", 4)).step == 4


def test_an_index_cannot_lead_to_files_that_were_not_verified(tmp_path):
    saved(tmp_path, 2)
    loader = checkpointer(tmp_path, Training())
    checkpoint = loader.latest()
    index = json.loads((checkpoint.path / "index.json").read_text())
    index["weights.a.weight"]["parts"][0]["file"] = "../../elsewhere.safetensors"
    (checkpoint.path / "index.json").write_text(json.dumps(index))
    with pytest.raises(RunError, match=r"index\.json and the manifest do not agree"):
        loader.load(checkpoint)


def forge(path, name, content):
    """What somebody can write who knows how the hashes are made."""
    manifest = read_manifest(path)
    (path / name).write_text(json.dumps(content))
    record = FileRecord((path / name).stat().st_size, hash_file(path / name))
    write_manifest(path, Manifest({**manifest.files, name: record}, manifest.content))


def one_entry(path, **changes):
    index = json.loads((path / "index.json").read_text())
    name = "optimizer.a.weight.exp_avg"
    return {**index, name: {**index[name], **changes}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dtype": "object"}, "KeyError"),
        ({"size": [8, -6]}, "-6 is not a count"),
        ({"size": [1 << 40, 1 << 10]}, "the parts of optimizer.a.weight.exp_avg do not make the whole"),
        ({"parts": [{"file": "tensors-0.safetensors", "key": "k", "offsets": [4, 0], "sizes": [8, 6]}]}, "outside it"),
        ({"parts": 3}, "TypeError"),
    ],
)
def test_a_forged_index_is_damage_and_allocates_nothing(tmp_path, changes, said):
    saved(tmp_path, 2)
    path = step_folder(tmp_path / "checkpoints", 2)
    forge(path, "index.json", one_entry(path, **changes))
    with pytest.raises(RunError, match=rf"step-2 is damaged: index\.json does not hold what it should .*{said}"):
        resumed(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("scalars.json", {"a.weight": 3}),
        ("random-0.json", {}),
        ("random-0.json", {"python": {"version": 3, "words": []}}),
    ],
)
def test_forged_numbers_are_damage(tmp_path, name, content):
    saved(tmp_path, 2)
    forge(step_folder(tmp_path / "checkpoints", 2), name, content)
    with pytest.raises(RunError, match=rf"step-2 is damaged: {name} does not hold what it should"):
        resumed(tmp_path)


# ---------------------------------------------------------------------- what resume names


def test_resume_names_this_run_another_one_or_a_checkpoint(tmp_path):
    """The path that `runs show` prints is the run's own directory, which need not hold a checkpoint yet."""
    own, other = tmp_path / "own", tmp_path / "other"
    own.mkdir()
    other.mkdir()
    saved(other, 2, 4)
    loader = checkpointer(own, Training())
    assert loader.find("never") is loader.find("auto") is loader.find(str(own)) is None
    assert loader.find(str(other)).step == 4
    assert loader.find(str(other / "checkpoints" / "step-2")).step == 2
    saved(own, 3)
    assert loader.find("auto").step == loader.find(str(own)).step == 3
    assert loader.find("never") is None


def test_resume_from_a_place_without_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "other" / "checkpoints").mkdir(parents=True)
    loader = checkpointer(tmp_path, Training())
    with pytest.raises(RunError, match=r"other has no whole checkpoint; name another run"):
        loader.find(str(tmp_path / "other"))
    with pytest.raises(RunError, match=r"nowhere is damaged: it has no manifest\.json"):
        loader.find(str(tmp_path / "nowhere"))


# ---------------------------------------------------------------------- what is of another run


def test_another_configuration_is_refused_with_every_leaf(tmp_path):
    saved(tmp_path, 2)
    other = {"optim": {"learning_rate": 0.02, "betas": (0.9, 0.5)}, "checkpoint": {"save_steps": 9}}
    with pytest.raises(RunError) as refused:
        resumed(tmp_path, settings=other)
    assert [problem.path for problem in refused.value.problems] == ["optim.learning_rate", "optim.betas"]
    assert "is 0.02 now and was 0.01 in" in str(refused.value)


def test_leaves_that_may_change_may(tmp_path):
    saved(tmp_path, 2)
    resumed(tmp_path, settings={**SETTINGS, "checkpoint": {"save_steps": 9}})


@pytest.mark.parametrize("name", ["data", "plan"])
def test_other_data_or_another_plan_is_refused(tmp_path, name):
    saved(tmp_path, 2)
    with pytest.raises(RunError, match=rf"the {name} is not the one of .*step-2: eeee.* now, .* there"):
        resumed(tmp_path, identity={**IDENTITY, name: "e" * 32})


def test_another_model_is_refused_by_name_and_by_shape(tmp_path):
    saved(tmp_path, 2)
    other = Training()
    weights = dict(other.state.weights)
    other.state = TrainingState(weights | {"extra": nn.Parameter(torch.zeros(1))}, other.optimizer)
    loader = checkpointer(tmp_path, other)
    with pytest.raises(RunError, match=r"of another model: 1 tensors are not in .*step-2: weights\.extra"):
        loader.load(loader.latest())
    other.state = TrainingState({**weights, "b.weight": nn.Parameter(torch.zeros(3, 9))}, Training().optimizer)
    loader = checkpointer(tmp_path, other)
    with pytest.raises(RunError, match=r"weights\.b\.weight is \(3, 9\) torch\.float32 here and \(3, 8\)"):
        loader.load(loader.latest())


def test_secrets_in_the_settings_stay_out_and_do_not_look_like_a_difference(tmp_path):
    settings = {**SETTINGS, "env": {"HF_TOKEN": "hunter2"}, "model": {"api_key": "hunter2"}}
    saved(tmp_path, 2, settings=settings)
    text = (step_folder(tmp_path / "checkpoints", 2) / "manifest.json").read_text()
    assert "hunter2" not in text
    resumed(tmp_path, settings=settings)


# ---------------------------------------------------------------------- which are kept


def test_the_limit_and_the_best(tmp_path):
    training = Training()
    saver = checkpointer(tmp_path, training, save_total_limit=2)
    for step in range(1, 7):
        training.steps(1)
        saver.save(step, meta={}, is_best=step in (1, 3))
    assert list_steps(tmp_path / "checkpoints") == [3, 6]
    assert saver.best().name == "step-3"
    again, checkpoint = resumed(tmp_path, save_total_limit=2)
    saver = checkpointer(tmp_path, again, save_total_limit=2)
    saver.load(checkpoint)
    saver.save(7, meta={})
    assert list_steps(tmp_path / "checkpoints") == [3, 7]


def test_the_best_is_the_one_that_the_loaded_checkpoint_knew(tmp_path):
    """A newer best that is damaged is none; nor is one that is gone, or of another run."""
    training = Training()
    saver = checkpointer(tmp_path, training)
    for step in range(1, 5):
        saver.save(step, meta={}, is_best=step in (2, 4))
    flip_a_bit(tmp_path / "checkpoints" / "step-4" / "tensors-0.safetensors")
    loader = checkpointer(tmp_path, Training())
    found = loader.latest()
    loader.load(found)
    assert (found.step, loader.best().name) == (3, "step-2")
    elsewhere = checkpointer(tmp_path / "other", Training())
    elsewhere.load(elsewhere.open(found.path))
    assert elsewhere.best() is None
    shutil.rmtree(loader.best())
    loader = checkpointer(tmp_path, Training())
    loader.load(loader.latest())
    assert loader.best() is None


# ---------------------------------------------------------------------- what the disk does


@pytest.mark.parametrize("async_save", [False, True])
def test_a_full_disk_costs_nothing_that_was_complete(tiny_disk, async_save):
    training = saved(tiny_disk, 1)
    before = training.weights()
    (tiny_disk / "filler").write_bytes(bytes(shutil.disk_usage(tiny_disk).free - (16 << 10)))
    saver = checkpointer(tiny_disk, training.steps(1), async_save=async_save)
    with pytest.raises(RunError, match=r"cannot write .*\.step-2\.writing.*: the disk is full \(.* free\)"):
        saver.save(2, meta={}, wait=True)
    assert list_steps(tiny_disk / "checkpoints") == [1]
    assert leftovers(tiny_disk / "checkpoints") == []
    again, _ = resumed(tiny_disk)
    assert_equal(again.weights(), before)
    (tiny_disk / "filler").unlink()
    saver.save(2, meta={}, wait=True)
    assert list_steps(tiny_disk / "checkpoints") == [1, 2]


def test_an_asynchronous_error_surfaces_at_the_next_step_and_once(tmp_path):
    training = Training().steps(1)
    saver = checkpointer(tmp_path, training, async_save=True)
    saver.save(1, meta={}, wait=True)
    (tmp_path / "checkpoints" / "step-2").write_text("a file in the way")
    saver.save(2, meta={})
    with pytest.raises(RunError, match="a file is in the way"):
        poll_until_it_ends(saver)
    saver.poll()
    notes = []
    saver.note = notes.append
    saver.save(2, meta={})
    saver.close()
    assert "the last checkpoint was not saved" in notes[0]


def poll_until_it_ends(saver):
    for _ in range(500):
        saver.poll()
        time.sleep(0.01)


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(RunError, match="something else has that name"):
        saved(tmp_path, 1)


KILLED = """
import os, signal, sys, time
import torch
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_checkpoint import Training, checkpointer

def run(report):
    training = Training()
    training.state.buffers["ballast"] = torch.zeros(1 << 20)
    saver = checkpointer(Path(sys.argv[1]), training, save_total_limit=2, async_save=sys.argv[3] == "async")
    checkpoint = saver.latest()
    step = 0
    if checkpoint is not None:
        saver.load(checkpoint)
        step = checkpoint.step
    os.write(report, f"start {step}\\n".encode())
    while True:
        step += 1
        training.steps(1)
        training.state.buffers["ballast"].fill_(step)
        saver.save(step, meta={"step": step}, wait=True)
        os.write(report, f"saved {step}\\n".encode())

torch.set_num_threads(1)
warm = checkpointer(Path(sys.argv[1]) / "warm", Training())
Path(sys.argv[1], "warm").mkdir()
warm.save(1, meta={})
warm.load(warm.latest())
for kill in range(int(sys.argv[4])):  # forks, since importing torch takes longer than being killed
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        run(writing)
    os.close(writing)
    first = os.read(reading, 4096)
    time.sleep(0.03 + 0.0171 * (kill % 10))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(reading) as rest:
        print((first.decode() + rest.read()).replace("\\n", " "), flush=True)
"""


@pytest.mark.parametrize("kills", [8, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_killed_in_the_middle_of_saves_nothing_that_was_complete_is_lost(tmp_path, mode, kills):
    """Each round goes on from the newest whole checkpoint: never before one that was reported as saved."""
    command = [sys.executable, "-c", KILLED, str(tmp_path), os.path.dirname(__file__), mode, str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    reported = 0
    rounds = [line.split() for line in done.stdout.splitlines()]
    assert len(rounds) == kills
    for words in rounds:
        start, *steps = [int(number) for number in words[1::2]]
        assert start >= reported
        reported = max([start, *steps])
    training = Training()
    training.state.buffers["ballast"] = torch.zeros(1 << 20)
    loader = checkpointer(tmp_path, training)
    checkpoint = loader.latest()
    assert checkpoint.step >= reported > 0
    loader.load(checkpoint)
    assert torch.equal(training.state.buffers["ballast"], torch.full((1 << 20,), float(checkpoint.step)))
