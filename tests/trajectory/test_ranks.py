"""Several processes train what one does: over gloo on a CPU, through the command line.

Each run is `sftctl train` in a process of its own, which starts the ranks. Loss within 1e-5, gradient norm within
1e-4, no drift over 20 steps, as for every other cut of the same batch.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from over_ranks import (
    ONE,
    STOP_AFTER_SEVEN,
    THREE,
    TIED,
    TWO,
    Run,
    assert_same_curve,
    assert_same_weights,
    curve,
    runner,
)
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

MODEL = "final/model.safetensors"


@pytest.fixture(scope="module")
def run(launcher: Any, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return runner(launcher, config, tmp_path_factory.mktemp("runs"), *TIED)


@pytest.fixture(scope="module")
def alone(run: Run) -> Path:
    """One process, 24 rows a step, evaluated and answered at its end."""
    code, said, path = run("alone", "--save-final", *EVALUATED)
    assert code == 0, said
    return path


EVALUATED = ["--set", "eval.generate_samples=5", "--eval-steps=10", "--max-new-tokens=8", "--test-split-size=4"]
VARIANTS = {
    "fsdp": [*TWO, *EVALUATED, "--save-final"],
    "ddp": [*TWO, "--strategy=ddp", *EVALUATED, "--save-final"],
    "fsdp, packed, full checkpointing, 3 micro-batches": [
        "--nproc-per-node=2", "--per-device-train-batch-size=4", "--gradient-accumulation-steps=3", "--packing",
        "--gradient-checkpointing=true", "--test-split-size=4",
    ],
    "ddp, packed, selective checkpointing, ranks without rows": [
        "--nproc-per-node=2", "--per-device-train-batch-size=2", "--gradient-accumulation-steps=6", "--packing",
        "--gradient-checkpointing=selective", "--strategy=ddp", "--test-split-size=4",
    ],
}  # fmt: skip
SLOW = {
    "fsdp, padded, gathered weights kept": [*TWO, "--no-padding-free", "--no-reshard-after-forward"],
    "fsdp, offloading, full checkpointing": [*TWO, "--activation-offloading", "--gradient-checkpointing=true"],
    "two replicas of two shards": [
        "--nproc-per-node=4", "--per-device-train-batch-size=2", "--gradient-accumulation-steps=3",
        "--hsdp-replicas=2", "--gradient-checkpointing=true",
    ],
    "three ranks": THREE,
}  # fmt: skip


@pytest.mark.parametrize("variant", [*VARIANTS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_ranks_train_what_one_process_does(variant: str, run: Run, alone: Path) -> None:
    options = {**VARIANTS, **SLOW}[variant]
    split = [] if "--test-split-size=4" in options else ["--test-split-size=4"]
    code, said, path = run(variant.replace(" ", "-"), *options, *split)
    assert code == 0, said
    assert_same_curve(path, alone)
    assert [record["step"] for record in curve(path)] == list(range(1, 21))
    assert said.count("step  1/20") == 1, "one rank tells"
    if "--save-final" in options:
        assert_same_results(path, alone)


def assert_same_results(path: Path, alone: Path) -> None:
    """Evaluations, and the final model: whole, with its own names, in Transformers' form."""
    evaluations = [
        [
            record
            for record in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
            if "eval_loss" in record
        ]
        for run in (path, alone)
    ]
    for ours, theirs in zip(*evaluations, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert_same_weights(path / MODEL, alone / MODEL)
    model = AutoModelForCausalLM.from_pretrained(path / "final")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("strategy", ["fsdp", pytest.param("ddp", marks=pytest.mark.slow)])
def test_bf16_keeps_float32_masters(strategy: str, run: Run) -> None:
    """Close to one process in bf16, which rounds at other places; the saved weights are no rounded ones."""
    options = ["--precision=bf16", "--max-steps=5", "--save-final"]
    _, _, alone = run("alone-bf16", *options)
    code, said, path = run(f"bf16-{strategy}", *options, *TWO, f"--strategy={strategy}")
    assert code == 0, said
    losses, expected = ([record["loss"] for record in curve(each)] for each in (path, alone))
    assert losses == pytest.approx(expected, rel=5e-3)
    weight = load_file(path / "final" / "model.safetensors")["model.embed_tokens.weight"]
    assert weight.dtype == torch.float32
    assert not torch.equal(weight, weight.bfloat16().float())


# ---------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(TWO, ONE, id="2 to 1"),
        pytest.param(ONE, TWO, id="1 to 2"),
        pytest.param([*TWO, "--strategy=ddp"], TWO, id="ddp to fsdp", marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_with_another_number_of_ranks(
    before: list[str], after: list[str], run: Run, alone: Path, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id.replace(" ", "-")
    options = ["--save-final", "--async-save", *EVALUATED]
    code, said, path = run(name, *before, *options, patch=STOP_AFTER_SEVEN)
    assert code == 3, said
    assert "stopped: by" in said
    assert "after step 7 of 20; the checkpoint is saved" in said
    assert json.loads((path / "state.json").read_text())["phase"] == "interrupted"
    code, said, path = run(name, *after, *options)
    assert code == 0, said
    assert "the number of ranks changed" in said or before[0] == after[0]
    assert_same_curve(path, alone)
    assert_same_results(path, alone)


def test_two_ranks_go_on_as_if_nothing_had_been(run: Run) -> None:
    """With dropout: each rank's random numbers go on where they were, bit for bit."""
    options = [*TWO, "--set", "model.architecture.attention_dropout=0.1", "--max-steps=9", "--save-final"]
    whole = run("whole", *options)[2]
    assert run("stopped", *options, patch=STOP_AFTER_SEVEN)[0] == 3
    code, said, stopped = run("stopped", *options)
    assert code == 0, said
    times = {"tokens_per_second", "step_seconds", "peak_memory_bytes"}
    ours, theirs = ([{k: v for k, v in r.items() if k not in times} for r in curve(each)] for each in (stopped, whole))
    assert ours == theirs
    name = "final/model.safetensors"
    assert (stopped / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
def test_verify_resume_proves_it_on_two_ranks(launcher: Any, config: Path) -> None:
    words = ["verify", "resume", str(config), *TWO, "--steps=4", "--set", "model.architecture.attention_dropout=0.1"]
    code, said = launcher.run(*words)
    assert code == 0, said
    assert "is the run that was never stopped, bit for bit" in said


def test_another_global_batch_is_refused(run: Run) -> None:
    assert run("other-batch", *TWO, patch=STOP_AFTER_SEVEN)[0] == 3
    code, said, _ = run("other-batch", "--nproc-per-node=1", "--per-device-train-batch-size=12")
    assert code == 2
    assert "the plan is not the one of" in said


# ---------------------------------------------------------------------- how it ends


def test_sigterm_to_the_launcher_stops_all_with_a_checkpoint(launcher: Any, config: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    words = ["train", str(config), f"--output-dir={tmp_path}", "--run-name=run", *TWO, "--max-steps=100000"]
    started = launcher.start(*words)
    started.wait_until(lambda: (path / "metrics.jsonl").exists() and len(curve(path)) > 2)
    started.send(signal.SIGTERM)
    assert started.wait() == 3, started.said
    assert started.said.count("stopped: ") == 1
    assert "Traceback" not in started.said
    (checkpoint,) = (path / "checkpoints").iterdir()
    assert {"random-0.json", "random-1.json", "tensors-0.safetensors", "tensors-1.safetensors"} <= {
        file.name for file in checkpoint.iterdir()
    }


def failing(what: str) -> str:
    """A patch: rank 1 does `what` in its third step."""
    return f"""
import os, signal
from sftctl.engine.training import step
from sftctl.errors import Problem, TrainingError
call = step.TrainStep.__call__
count = 0
def fail(self, batches, *, learning_rate):
    global count
    count += 1
    if count == 3 and self.ranks.rank == 1:
        {what}
    return call(self, batches, learning_rate=learning_rate)
step.TrainStep.__call__ = fail
"""


@pytest.mark.parametrize(
    ("what", "code", "message"),
    [
        ('raise TrainingError(Problem("", "the sky fell", help="look up"))', 1, "error: the sky fell"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 1, "error: rank 1 was killed by SIGKILL"),
        ('raise ZeroDivisionError("ours")', 70, "ZeroDivisionError: ours"),
    ],
    ids=["an error", "killed", "a bug"],
)
def test_one_rank_that_fails_ends_all_with_one_report(
    what: str, code: int, message: str, run: Run, request: pytest.FixtureRequest
) -> None:
    got, said, path = run(request.node.callspec.id, *TWO, patch=failing(what))
    assert got == code, said
    assert message in said
    assert said.count("error: ") == (1 if code == 1 else 0), said
    assert said.count("Traceback") == (0 if code == 1 else 2), said  # there, and here
    assert "gloo" not in said
    assert json.loads((path / "state.json").read_text())["phase"] in ("failed", "running")


def test_what_every_rank_finds_wrong_is_said_once(run: Run, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "2 + 2 = ", "completion": "4"}\n{"text": "no pair"}\n')
    code, said, path = run("bad-rows", *TWO, "--set", f'data.datasets=[{{path="{rows}"}}]')
    assert code == 2, said
    assert said.count("error: ") == 1
    assert "rows.jsonl:2" in said
    assert not path.exists()


def test_a_loss_that_is_not_finite_names_the_rows_of_all_ranks(run: Run) -> None:
    code, said, path = run("infinite", *TWO, "--learning-rate=1e30", "--set", "optim.max_grad_norm='none'")
    assert code == 1, said
    assert said.count("error: ") == 1
    assert "prepared rows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, …" in said
    assert json.loads((path / "state.json").read_text())["phase"] == "failed"


def test_a_directory_that_is_refused_is_refused_on_all(run: Run, alone: Path) -> None:
    code, said, _ = run("alone", *TWO, "--learning-rate=1e-4", *EVALUATED)
    assert code == 2
    assert said.count("optim.learning_rate") == 1


# ---------------------------------------------------------------------- other launchers


@pytest.mark.slow
def test_ranks_that_start_from_nothing(run: Run, alone: Path) -> None:
    """As on a machine with CUDA, where a process must not be forked: everything goes over as a pickle."""
    patch = "from sftctl.engine.ranks import launch; launch._start_method = lambda: 'spawn'"
    code, said, path = run("spawned", *TWO, "--test-split-size=4", patch=patch)
    assert code == 0, said
    assert_same_curve(path, alone)


@pytest.mark.slow
def test_torchrun_starts_the_ranks_too(config: Path, tmp_path: Path, run: Run, alone: Path) -> None:
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sftctl", "train", str(config)]
    options = [f"--output-dir={tmp_path}", "--run-name=run", *TIED, "--test-split-size=4", *TWO[1:]]
    done = subprocess.run([sys.executable, *words, *options], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_curve(tmp_path / "run", alone)
    wrong = subprocess.run([sys.executable, *words, "--lerning-rate=1"], capture_output=True, text=True, timeout=120)
    assert wrong.stderr.count("error: --lerning-rate: unknown option") == 1


@pytest.mark.slow
def test_two_machines_meet(launcher: Any, config: Path, tmp_path: Path, alone: Path) -> None:
    """Here they are one, and share its disk: a launcher each, one rank each."""
    meeting = ["--nnodes=2", "--rdzv-endpoint=localhost:29431", "--per-device-train-batch-size=12"]
    words = ["train", str(config), f"--output-dir={tmp_path}", "--run-name=run", *TIED, *meeting, "--test-split-size=4"]
    first, second = (launcher.start(*words, f"--node-rank={rank}") for rank in (0, 1))
    assert (first.wait(), second.wait()) == (0, 0), first.said + second.said
    assert_same_curve(tmp_path / "run", alone)
    assert "step  1/20" in first.said
    assert "step" not in second.said
