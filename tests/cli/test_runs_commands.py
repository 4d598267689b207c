"""`sftctl runs list` and `sftctl runs show`: what a run of each kind looks like, at 80 columns; damage is said."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from sftctl.cli.runs.list_runs import _when
from sftctl.errors import Interrupted, Problem, SftctlError, TrainingError
from sftctl.runs.directory import Identity, RunDirectory, claim
from sftctl.runs.manifest import FileRecord, Manifest, step_folder, write_manifest
from sftctl.runs.metrics import MetricsWriter
from sftctl.runs.state import utc_now

Sftctl = Callable[..., tuple[int, str, str]]

ENDS: dict[str, SftctlError | None] = {
    "failed": TrainingError(Problem("", "the loss is nan")),
    "interrupted": Interrupted(Problem("", "by SIGTERM after step 5 of 10; the checkpoint is saved")),
    "finished": None,
}


def fill(run: RunDirectory) -> None:
    """Five steps of ten, an evaluation, a checkpoint of 1,000,000 bytes."""
    run.begin(total_steps=10)
    run.config.write_text("")
    with MetricsWriter(run.metrics) as metrics:
        for step in range(1, 6):
            metrics.append({"step": step, "loss": 4.0 / step})
        metrics.append({"step": 5, "eval_loss": 0.75, "eval_num_trained_tokens": 1234})
    folder = step_folder(run.checkpoints, 5)
    folder.mkdir(parents=True)
    (folder / "tensors-0.safetensors").write_bytes(bytes(1_000_000))
    write_manifest(folder, Manifest({"tensors-0.safetensors": FileRecord(1_000_000, "0")}, {"step": 5}))
    run.update("running", step=5)


@pytest.fixture
def runs(folder: Path) -> Path:
    """A run of each kind in the folder `runs`, the working directory's own."""
    for phase, error in ENDS.items():
        with (
            contextlib.suppress(SftctlError),
            claim(folder / "runs", Identity("r", phase, {}), run_name=f"gsm8k-{phase}") as run,
        ):
            fill(run)
            if error is not None:
                raise error
            run.update("finished", step=10)
            run.final.mkdir()
    killed = claim(folder / "runs", Identity("r", "killed", {}), run_name="gsm8k-killed")
    fill(killed)
    killed._lock.release()  # type: ignore[union-attr] # as the kernel does for a process that was killed
    return folder / "runs"


def test_the_list_at_80_columns(sftctl: Sftctl, runs: Path) -> None:
    with claim(runs, Identity("r", "running", {}), run_name="gsm8k-running") as running:
        fill(running)
        code, said, errors = sftctl("runs", "list")
    assert (code, errors) == (0, "")
    assert all(len(line) <= 80 for line in said.splitlines()), said
    head, *rows = said.splitlines()
    assert head.split() == ["run", "state", "step", "loss", "disk", "written"]
    states = {row.split()[0]: row.split()[1:4] for row in rows if row.strip()}
    assert states == {
        "gsm8k-failed": ["failed", "5/10", "0.8000"],
        "gsm8k-interrupted": ["interrupted", "5/10", "0.8000"],
        "gsm8k-finished": ["finished", "10/10", "0.8000"],
        "gsm8k-killed": ["interrupted", "5/10", "0.8000"],
        "gsm8k-running": ["running", "5/10", "0.8000"],
    }


@pytest.mark.parametrize(
    ("phase", "state", "resumable"),
    [
        ("failed", "failed: the loss is nan", True),
        ("interrupted", "interrupted: by SIGTERM after step 5 of 10; the checkpoint is saved", True),
        ("killed", "interrupted", True),
        ("finished", "finished", False),
    ],
)
def test_one_run(sftctl: Sftctl, runs: Path, phase: str, state: str, resumable: bool) -> None:
    code, said, errors = sftctl("runs", "show", f"gsm8k-{phase}")
    assert (code, errors) == (0, "")
    shown = {words[0]: words[1].strip() for line in said.splitlines() if len(words := line.split("  ", 1)) == 2}
    assert shown["state"] == state
    assert shown["step"] == ("10 of 10" if phase == "finished" else "5 of 10")
    assert shown["loss"] == "4.0000 at first, 0.8000 now"
    assert (shown["eval_loss"], shown["eval_num_trained_tokens"]) == ("0.7500", "1,234")
    assert shown["checkpoint 5"] == "1.0 MB"
    assert shown["final model"] == ("runs/gsm8k-finished/final" if phase == "finished" else "none")
    path = f"runs/gsm8k-{phase}"
    assert shown.get("go on") == (f"sftctl train {path}/config.toml --resume {path}" if resumable else None)


def test_a_name_that_sftctl_gives_fits_beside_the_rest(sftctl: Sftctl, folder: Path) -> None:
    with claim(folder / "runs", Identity("train", "0123456789", {})) as run:
        fill(run)
        run.update("running", step=3000, total_steps=3000)
        (line,) = sftctl("runs", "list")[1].splitlines()[1:]
    assert line.startswith(run.path.name)
    assert len(line) <= 80, line


def test_a_year_is_shown_where_it_is_another_one() -> None:
    now = utc_now()
    assert _when(now) == f"{now[5:10]} {now[11:16]}"
    assert _when("2025-11-24T12:34:56+00:00") == "2025-11-24"


def test_the_command_to_go_on_is_one_that_a_shell_understands(sftctl: Sftctl, folder: Path) -> None:
    run = claim(folder / "my runs", Identity("r", "d", {}), run_name="it's")
    fill(run)
    run._lock.release()  # type: ignore[union-attr]
    _, said, _ = sftctl("runs", "show", "my runs/it's")
    assert """sftctl train 'my runs/it'"'"'s/config.toml' --resume 'my runs/it'"'"'s'""" in said


def test_both_as_json(sftctl: Sftctl, runs: Path) -> None:
    listed = json.loads(sftctl("runs", "list", "--format", "json")[1])
    assert {each["name"] for each in listed} == {f"gsm8k-{end}" for end in (*ENDS, "killed")}
    shown = json.loads(sftctl("runs", "show", "gsm8k-killed", "--format", "json")[1])
    assert shown["summary"]["phase"] == "interrupted"
    assert shown["last_evaluation"]["eval_loss"] == 0.75


def test_no_run_there(sftctl: Sftctl, folder: Path) -> None:
    assert sftctl("runs", "list")[:2] == (0, "no runs in runs\n")
    code, _, errors = sftctl("runs", "show", "nothing")
    assert code == 2
    assert "there is no run runs/nothing" in errors


WRONG = [None, True, -1, 1.5, "x", "NaN", "\x1b[2J", [], [1], {}, {"a": 1}]


def test_whatever_a_run_directory_holds_it_is_no_bug(sftctl: Sftctl, runs: Path) -> None:
    """Each value of each file in turn replaced by one of another type; bytes flipped and cut."""
    run = runs / "gsm8k-failed"
    state = json.loads((run / "state.json").read_text())
    record = {"step": 5, "loss": 0.8, "eval_loss": 0.75}
    draw = random.Random(7)
    for _ in range(150):
        (run / "state.json").write_text(json.dumps(state))
        (run / "metrics.jsonl").write_text(json.dumps(record) + "\n")
        name, whole = draw.choice([("state.json", state), ("metrics.jsonl", record)])
        changed = {**whole, draw.choice(list(whole)): draw.choice(WRONG)}
        text = bytearray((json.dumps(draw.choice([changed, changed, draw.choice(WRONG)])) + "\n").encode())
        if draw.random() < 0.3:
            text[draw.randrange(len(text))] ^= 1 << draw.randrange(8)
        (run / name).write_bytes(text[: draw.randrange(len(text))] if draw.random() < 0.1 else text)
        for words in (
            ["list"],
            ["show", "gsm8k-failed"],
            ["list", "--format=json"],
            ["show", "gsm8k-failed", "--format=json"],
        ):
            code, said, errors = sftctl("runs", *words)
            assert code in (0, 2), (text, errors)
            assert "Traceback" not in errors, (text, errors)
            assert "\x1b" not in said + errors, (text, said)
