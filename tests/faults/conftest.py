"""A small run, the same run never stopped, and a launcher of processes that can be killed."""

from __future__ import annotations

import json
import os
import random
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))  # for the launcher, which is a program too

from launcher import Launcher

STEPS = 30
TIMES = {"tokens_per_second", "step_seconds", "peak_memory_bytes"}


@pytest.fixture(scope="session")
def launcher(tmp_path_factory):
    launcher = Launcher(tmp_path_factory.mktemp("logs"))
    yield launcher
    launcher.close()


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """Sums of different lengths: 40 rows, so that steps of 6 rows end an epoch with a smaller one."""
    draw = random.Random(3)
    path = tmp_path_factory.mktemp("rows") / "sums.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for _ in range(40):
            terms = [draw.randrange(100) for _ in range(draw.randrange(1, 7))]
            file.write(
                json.dumps({"prompt": " + ".join(map(str, terms)) + " = ", "completion": str(sum(terms))}) + "\n"
            )
    return path


def write_config(path, rows):
    """Saves at each step and evaluates now and then: whatever moment a run is killed at, something is going on."""
    path.write_text(
        f"""
[model]
init = "random"
tokenizer = "bytes"
architecture = {{ model_type = "llama", hidden_size = 32, intermediate_size = 64, num_hidden_layers = 2, \
num_attention_heads = 4, num_key_value_heads = 2, max_position_embeddings = 128, attention_dropout = 0.1 }}

[data]
datasets = [{{ path = "{rows}" }}]
test_split_size = 4

[sft]
max_length = 64
packing = true

[optim]
learning_rate = 3e-3
lr_scheduler_type = "cosine"
warmup_steps = 3

[train]
max_steps = {STEPS}
per_device_train_batch_size = 3
gradient_accumulation_steps = 2
precision = "fp32"
gradient_checkpointing = false

[eval]
eval_steps = 7

[checkpoint]
save_steps = 1
save_total_limit = 2

[log]
logging_steps = 1
""",
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="session")
def config(tmp_path_factory, rows):
    return write_config(tmp_path_factory.mktemp("config") / "faults.toml", rows)


@pytest.fixture(scope="session")
def never_stopped(launcher, config, tmp_path_factory):
    """The run directory of the run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    code, said = launcher.run("train", str(config), "--output-dir", str(folder), "--run-name=whole")
    assert code == 0, said
    return folder / "whole"


@pytest.fixture
def words(config, tmp_path):
    """The command of a run in this test's own folder."""
    return ["train", str(config), "--output-dir", str(tmp_path), "--run-name=run"]


def records(run):
    """The metrics, but for what a clock says."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def last_step(run):
    """The newest step that has a checkpoint under its final name; 0 where there is none."""
    folder = run / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(name.removeprefix("step-")) for name in names if name.startswith("step-")), default=0)


def assert_same_run(run, never_stopped):
    """Bit for bit: losses, learning rates, counters, evaluations, final weights."""
    assert records(run) == records(never_stopped)
    finals = [
        {path.name: path.read_bytes() for path in (each / "final").glob("*.safetensors")}
        for each in (run, never_stopped)
    ]
    assert len(finals[1]) == 1
    assert finals[0] == finals[1]


class Check:
    """The helpers, for tests, which cannot import this file."""

    records = staticmethod(records)
    last_step = staticmethod(last_step)
    same_run = staticmethod(assert_same_run)
    write_config = staticmethod(write_config)


@pytest.fixture(scope="session")
def check():
    return Check
