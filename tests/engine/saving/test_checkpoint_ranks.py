"""Checkpoints of several ranks, over gloo: n write, m read. The ranks are forks of one process that has torch."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys, traceback
from pathlib import Path
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

sys.path.insert(0, sys.argv[1])
folder = Path(sys.argv[2])
torch.set_num_threads(1)
from test_checkpoint import IDENTITY, SETTINGS, Training
from sftctl.engine.saving import checkpoint as module
from sftctl.engine.saving.checkpoint import Checkpointer
from sftctl.engine.ranks.distributed import Ranks
from sftctl.engine.saving.training_state import TrainingState, tensors_of

def checkpointer(training, rank, world_size, **changes):
    ranks = Ranks(rank, world_size, torch.device("cpu"))
    return Checkpointer(folder, training.state, ranks=ranks, settings=SETTINGS, identity=IDENTITY, **changes)

def sharded(seed=0):
    training = Training(seed=seed)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in (training.model.a, training.model.b, training.model):
        fully_shard(layer, mesh=mesh)
    named = dict(training.model.named_parameters())
    optimizer = torch.optim.AdamW(named.values(), lr=0.01, fused=True)
    training.model.drop.p = 0.0
    training.optimizer, training.state = optimizer, TrainingState(named, optimizer)
    return training

def plain(seed=0):
    training = Training(seed=seed)
    named = dict(training.model.named_parameters())
    optimizer = torch.optim.AdamW(named.values(), lr=0.01, fused=True)
    training.optimizer, training.state = optimizer, TrainingState(named, optimizer)
    return training

def full(training):
    return {name: getattr(t, "full_tensor", lambda: t)() for name, t in tensors_of(training.state).items()}

def ranks(world_size, work):
    children = []
    for rank in range(world_size):
        child = os.fork()
        if child == 0:
            try:
                store = f"file://{folder}-store-{os.getppid()}-{work.__name__}"
                dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
                work(rank, world_size)
                dist.barrier()
                dist.destroy_process_group()
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        children.append(child)
    assert all(os.waitpid(child, 0)[1] == 0 for child in children), "a rank failed"
"""


def in_ranks(tmp_path, body):
    command = [sys.executable, "-c", PROGRAM + body, os.path.dirname(__file__), str(tmp_path / "checkpoints")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("mode", [pytest.param("False", marks=pytest.mark.slow), "True"])
def test_two_ranks_write_one_reads_and_the_other_way_round(tmp_path, mode):
    """Sharded weights and moments come together on one process, and are spread again, bit for bit."""
    in_ranks(
        tmp_path,
        f"""
def save_sharded(rank, world_size):
    training = sharded().steps(3)
    saver = checkpointer(training, rank, world_size, async_save={mode})
    saver.save(3, meta={{}})
    before = full(training)
    saver.wait()
    if rank == 0:
        torch.save(before, f"{{folder}}-expected")

def load_alone(rank, world_size):
    training = plain(seed=1)
    notes = []
    loader = checkpointer(training, rank, world_size, note=notes.append)
    found = loader.latest()
    loader.load(found)
    loader.restore_random(found)
    assert notes == ["the number of ranks changed: dropout draws from other random numbers than it would have"]
    expected = torch.load(f"{{folder}}-expected")
    now = full(training)
    assert now.keys() == expected.keys() and all(torch.equal(now[n], expected[n]) for n in now)
    loader.save(4, meta={{}})

def load_sharded(rank, world_size):
    training = sharded(seed=2)
    loader = checkpointer(training, rank, world_size)
    found = loader.latest()
    assert found.step == 4
    loader.load(found)
    expected = torch.load(f"{{folder}}-expected")
    now = full(training)
    assert now.keys() == expected.keys() and all(torch.equal(now[n], expected[n]) for n in now)
    training.steps(1)

ranks(2, save_sharded)
assert len(list((folder / "step-3").glob("tensors-*"))) == 2
ranks(1, load_alone)
ranks(2, load_sharded)
""",
    )


@pytest.mark.slow
def test_replicated_tensors_are_written_once_and_shared_out(tmp_path):
    in_ranks(
        tmp_path,
        """
import json

def save(rank, world_size):
    training = plain().steps(1)
    saver = checkpointer(training, rank, world_size)
    saver.save(1, meta={})
    expected = {name: tensor.clone() for name, tensor in full(training).items()}
    training.steps(2)
    dist.barrier()
    found = saver.latest()
    saver.load(found)
    saver.restore_random(found)
    now = full(training)
    assert all(torch.equal(now[name], expected[name]) for name in now)

ranks(2, save)
index = json.loads((folder / "step-1" / "index.json").read_text())
assert all(len(entry["parts"]) == 1 for entry in index.values())
assert {entry["parts"][0]["file"] for entry in index.values()} == {"tensors-0.safetensors", "tensors-1.safetensors"}
""",
    )


@pytest.mark.slow
def test_a_rank_that_cannot_write_stops_the_save_on_the_main_one(tmp_path):
    """Nothing is published; the main rank says which one it was, and why. Damage found by one is known to all."""
    in_ranks(
        tmp_path,
        """
def save(rank, world_size):
    training = plain().steps(1)
    saver = checkpointer(training, rank, world_size)
    saver.save(1, meta={})
    dist.barrier()
    if rank == 1:
        def full_disk(path, parts):
            raise OSError(28, "No space left on device")
        module.write_tensors = full_disk
    try:
        saver.save(2, meta={})
    except module.RunError as error:
        text = str(error)
    assert "the disk is full" in text and ("rank 1 could not" in text) == (rank == 0), text
    dist.barrier()
    assert [path.name for path in folder.iterdir()] == ["step-1"]
    if rank == 0:
        file = folder / "step-1" / "tensors-1.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    dist.barrier()
    notes = []
    saver.note = notes.append
    try:
        raise AssertionError(f"{saver.latest()} was taken for a whole one")
    except module.RunError as error:
        assert "none of the 1 checkpoints" in str(error), error
    assert "tensors-1.safetensors is not what was written" in notes[0]

ranks(2, save)
""",
    )
