"""Claiming a run directory: new, resumed, finished, replaced, refused; and what is left when a run never begins."""

import dataclasses
import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from sftctl.errors import Interrupted, Problem, RunError, TrainingError
from sftctl.runs.directory import Identity, attach, claim, default_name, newest_same, run_directories
from sftctl.runs.files import write_json
from sftctl.runs.lock import is_held
from sftctl.runs.state import read_state, write_state

SETTINGS = {"optim": {"learning_rate": 1e-3}, "checkpoint": {"save_steps": 10}, "run": {"run_name": None}}
IDENTITY = Identity("quick start.toml", "3fa9c1d2e3", SETTINGS)
NOON = datetime(2026, 11, 24, 12, 0, 0)


def write_settings(run, settings):
    leaves = {f"{group}.{name}": value for group, leaves in settings.items() for name, value in leaves.items()}
    write_json(run.origins, {path: {"value": value, "origin": "default"} for path, value in leaves.items()})


def begun(output_dir, name="a", settings=SETTINGS, step=0):
    """A run directory whose run began and was then let go of, as a killed one is."""
    with claim(output_dir, IDENTITY, run_name=name) as run:
        write_settings(run, settings)
        run.begin(total_steps=100, step=step)
    return run.path


def ended_by(run, error):
    with pytest.raises(type(error)), run:
        raise error


def test_the_default_name_is_recipe_time_and_digest(tmp_path):
    assert default_name(IDENTITY, NOON) == "quick-start.toml-20261124-120000-3fa9c1"
    with claim(tmp_path, IDENTITY, now=NOON) as run:
        assert run.path.name == "quick-start.toml-20261124-120000-3fa9c1"
        assert run.claim == "new"


def test_two_new_runs_of_one_second_get_two_names(tmp_path):
    with claim(tmp_path, IDENTITY, resume="never", now=NOON) as first:
        first.begin(total_steps=1)
        with claim(tmp_path, IDENTITY, resume="never", now=NOON) as second:
            assert second.path.name == first.path.name + "-2"


@pytest.mark.parametrize("name", ["../out", "a/b", "..", ".hidden", "a\nb", "x" * 300, "a\\b"])
def test_a_run_name_cannot_lead_out_of_the_output_folder(tmp_path, name):
    output_dir = tmp_path / "runs"
    output_dir.mkdir()
    with pytest.raises(RunError, match=r"run\.run_name"):
        claim(output_dir, IDENTITY, run_name=name)
    assert list(tmp_path.rglob("*")) == [output_dir]


def test_a_run_that_never_began_leaves_nothing(tmp_path):
    run = claim(tmp_path / "new" / "runs", IDENTITY, run_name="a")
    run.data.write_text("{}")
    ended_by(run, TrainingError(Problem("", "no rows")))
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_that_was_there_stays_and_stays_empty(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(TrainingError), claim(tmp_path, IDENTITY, run_name="a"):
        raise TrainingError(Problem("", "no rows"))
    assert [entry.name for entry in (tmp_path / "a").iterdir()] == []


@pytest.mark.parametrize(
    ("error", "phase"),
    [
        (Interrupted(Problem("", "told to stop")), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
        (TrainingError(Problem("", "the loss is nan")), "failed"),
    ],
)
def test_how_a_run_ended_is_recorded(tmp_path, error, phase):
    run = claim(tmp_path, IDENTITY, run_name="a")
    run.begin(total_steps=100)
    ended_by(run, error)
    state = read_state(run.path / "state.json")
    assert (state.phase, state.message) == (phase, str(error) or "left at once, without another checkpoint")
    assert not is_held(run.path / ".lock")


def test_progress_is_written_now_and_then_and_an_end_always(tmp_path, monkeypatch):
    clock = iter([0.0, 0.0, 1.0, 1.9, 2.0, 2.1, 2.2])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    written = []
    with claim(tmp_path, IDENTITY, run_name="a") as run:
        run.begin(total_steps=100)
        for step in range(1, 5):
            run.update("running", step=step)
            written.append(read_state(run.path / "state.json").step)
        run.update("finished")
    assert written == [0, 0, 3, 3]
    assert read_state(run.path / "state.json").step == 4


def test_what_is_recorded_is_what_happened_and_not_what_to_do(tmp_path):
    run = claim(tmp_path, IDENTITY, run_name="a")
    run.begin(total_steps=100)
    ended_by(
        run, TrainingError(Problem("", "the loss is nan", help="lower the learning rate"), Problem("", "at step 3"))
    )
    assert read_state(run.path / "state.json").message == "the loss is nan; at step 3"


def test_a_secret_in_an_error_does_not_reach_the_disk(tmp_path):
    run = claim(tmp_path, IDENTITY, run_name="a")
    run.begin(total_steps=100)
    ended_by(
        run, TrainingError(Problem("", "https://me:pa55@hub.example refused HF_TOKEN=abc hf_abcdefghijklmnopqrst"))
    )
    text = (run.path / "state.json").read_text()
    assert "pa55" not in text
    assert "abc" not in text


def test_the_same_run_goes_on_and_counts_its_resumes(tmp_path):
    path = begun(tmp_path, step=7)
    for count in (1, 2):
        with claim(tmp_path, IDENTITY, run_name="a") as run:
            assert (run.path, run.claim) == (path, "resume")
            run.begin(total_steps=100, step=7)
            assert run.state.resumes == count


def test_without_a_name_the_newest_run_of_the_same_digest_goes_on(tmp_path):
    with claim(tmp_path, IDENTITY, now=NOON) as first:
        write_settings(first, SETTINGS)
        first.begin(total_steps=100)
    with claim(tmp_path, IDENTITY) as again:
        assert (again.path, again.claim) == (first.path, "resume")
    other = Identity(IDENTITY.recipe, "ffff", SETTINGS)
    with claim(tmp_path, other) as another:
        assert another.path != first.path


def test_a_clock_that_jumps_back_does_not_change_which_run_is_the_newest(tmp_path):
    for hour in (12, 11):
        with claim(tmp_path, IDENTITY, resume="never", now=NOON.replace(hour=hour)) as run:
            run.begin(total_steps=100)
            state = dataclasses.replace(run.state, started=f"2026-11-24T{hour}:00:00+00:00")
            write_state(run.path / "state.json", state)
    assert newest_same(tmp_path, IDENTITY.digest) == run.path
    assert run.path.name < "quick-start.toml-20261124-12"


def test_a_finished_run_says_so(tmp_path):
    with claim(tmp_path, IDENTITY, run_name="a") as run:
        write_settings(run, SETTINGS)
        run.begin(total_steps=100)
        run.update("finished", step=100)
    with claim(tmp_path, IDENTITY, run_name="a") as run:
        assert run.claim == "finished"


def test_another_run_is_refused_with_the_leaves_that_differ(tmp_path):
    path = begun(tmp_path)
    other = Identity("b", "ffff", {**SETTINGS, "optim": {"learning_rate": 1e-4}})
    with pytest.raises(RunError, match=r"optim\.learning_rate: is 0\.0001 now and was 0\.001 in") as refused:
        claim(tmp_path, other, run_name="a")
    assert str(path) in str(refused.value)
    assert not is_held(path / ".lock")


def test_leaves_that_may_change_do_not_matter(tmp_path):
    begun(tmp_path)
    other = Identity("b", "ffff", {**SETTINGS, "checkpoint": {"save_steps": 1}})
    with claim(tmp_path, other, run_name="a") as run:
        assert run.claim == "resume"


def test_never_resume_refuses_a_run_that_is_there(tmp_path):
    begun(tmp_path, step=3)
    with pytest.raises(RunError, match=r"holds a run already \(running, step 3\)"):
        claim(tmp_path, IDENTITY, run_name="a", resume="never")


def test_a_path_to_a_run_goes_on_there_and_a_path_to_a_checkpoint_starts_another(tmp_path):
    path = begun(tmp_path / "old")
    (path / "checkpoints" / "step-3").mkdir(parents=True)
    with claim(tmp_path / "runs", IDENTITY, resume=str(path)) as run:
        assert (run.path, run.claim) == (path, "resume")
    with claim(tmp_path / "runs", IDENTITY, run_name="fork", resume=str(path / "checkpoints" / "step-3")) as fork:
        assert (fork.path, fork.claim) == (tmp_path / "runs" / "fork", "new")


def test_overwrite_keeps_the_old_run_until_the_new_one_begins(tmp_path):
    path = begun(tmp_path)
    (path / "final").mkdir()
    (path / "final" / "model.safetensors").write_text("old")
    with (
        pytest.raises(TrainingError),
        claim(tmp_path, IDENTITY, run_name="a", overwrite=True),
    ):
        raise TrainingError(Problem("", "no rows"))
    assert (path / "final" / "model.safetensors").read_text() == "old"
    assert read_state(path / "state.json").phase == "running"
    with claim(tmp_path, IDENTITY, run_name="a", overwrite=True) as run:
        assert (run.claim, run.final.exists()) == ("new", False)
        run.begin(total_steps=1)
    assert {entry.name for entry in path.iterdir()} == {".lock", "state.json"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("moved", [0, 1, 2, 3])
def test_a_death_while_the_old_run_is_set_aside_loses_nothing_of_it(tmp_path, monkeypatch, moved, overwrite):
    """After any number of its four entries were moved, the next claim finds it whole, and may replace it again."""
    path = begun(tmp_path)
    for name in ("config.toml", "metrics.jsonl"):
        (path / name).write_text(name)
    rename, count = Path.rename, [0]

    def dying(self, target):
        if ".replaced" in str(target) and count[0] == moved:
            raise SystemExit
        count[0] += ".replaced" in str(target)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", dying)
    with pytest.raises(SystemExit):
        claim(tmp_path, IDENTITY, run_name="a", overwrite=True)
    monkeypatch.undo()
    with claim(tmp_path, IDENTITY, run_name="a", overwrite=overwrite) as run:
        assert run.claim == ("new" if overwrite else "resume")
    assert {entry.name for entry in path.iterdir()} == {
        ".lock",
        "config.toml",
        "metrics.jsonl",
        "origins.json",
        "state.json",
    }
    assert read_state(path / "state.json").total_steps == 100


def test_overwrite_never_removes_what_is_not_a_run(tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter1.tex").write_text("years of work")
    (folder / ".lock").write_text("somebody's")
    with pytest.raises(RunError, match="exists and is not a run directory"):
        claim(tmp_path, IDENTITY, run_name="thesis", overwrite=True)
    assert {entry.name: entry.read_text() for entry in folder.iterdir()} == {
        "chapter1.tex": "years of work",
        ".lock": "somebody's",
    }


def test_a_damaged_state_is_refused_and_can_be_overwritten(tmp_path):
    path = begun(tmp_path)
    (path / "state.json").write_text('{"phase": "runn')
    with pytest.raises(RunError, match=r"state\.json is damaged"):
        claim(tmp_path, IDENTITY, run_name="a")
    with claim(tmp_path, IDENTITY, run_name="a", overwrite=True) as run:
        assert run.claim == "new"


def test_a_run_cut_off_before_its_state_starts_anew(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".lock").touch()
    (tmp_path / "a" / ".state.json.123.tmp").write_text("{")
    with claim(tmp_path, IDENTITY, run_name="a") as run:
        assert run.claim == "new"


def test_a_file_in_the_way_is_named_and_nothing_is_made(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(RunError, match="a file is in the way where a folder is needed"):
        claim(tmp_path / "runs", IDENTITY, run_name="a")
    with pytest.raises(RunError, match="a file is in the way"):
        claim(tmp_path / "runs" / "deeper", IDENTITY, run_name="a")
    (tmp_path / "ok").mkdir()
    (tmp_path / "ok" / "a").write_text("a file")
    with pytest.raises(RunError, match="a file is in the way"):
        claim(tmp_path / "ok", IDENTITY, run_name="a")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "ok", "runs"]


def test_a_second_claim_in_the_same_process_is_refused_and_does_not_free_the_first(tmp_path):
    with claim(tmp_path, IDENTITY, run_name="a") as run:
        run.begin(total_steps=1)
        for _ in range(2):
            with pytest.raises(RunError, match=rf"in use by process {os.getpid()} on "):
                claim(tmp_path, IDENTITY, run_name="a")
        assert try_in_another_process(tmp_path) == "refused"
    assert try_in_another_process(tmp_path) == "claimed resume"


def test_two_processes_in_one_directory_the_second_is_refused_until_the_first_is_killed(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", PROGRAM + "print(run.claim, flush=True); time.sleep(60)", str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "new\n"
        with pytest.raises(RunError, match=rf"in use by process {holder.pid} on "):
            claim(tmp_path, IDENTITY, run_name="a")
        assert is_held(tmp_path / "a" / ".lock")
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with claim(tmp_path, IDENTITY, run_name="a") as run:
        assert run.claim == "resume"


PROGRAM = """
import sys, time
from pathlib import Path
from sftctl.errors import RunError
from sftctl.runs.directory import Identity, claim
try:
    run = claim(Path(sys.argv[1]), Identity("r", "3fa9c1d2e3", {}), run_name="a")
    run.begin(total_steps=1)
except RunError:
    print("refused"); sys.exit()
"""


def try_in_another_process(output_dir: Path) -> str:
    command = [sys.executable, "-c", PROGRAM + "print('claimed', run.claim)", str(output_dir)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_other_ranks_attach_without_writing(tmp_path):
    with claim(tmp_path, IDENTITY, run_name="a") as run:
        run.begin(total_steps=5)
        before = (run.path / "state.json").read_text()
        other = attach(run.path)
        other.update("failed", step=3)
        other.close()
        assert (run.path / "state.json").read_text() == before
        assert is_held(run.path / ".lock")


def test_what_is_no_run_directory_cannot_be_attached(tmp_path):
    with pytest.raises(RunError, match=r"is not a run directory: it has no state\.json"):
        attach(tmp_path)


def test_only_folders_with_a_state_are_runs(tmp_path):
    begun(tmp_path, "b")
    begun(tmp_path, "a")
    (tmp_path / "notes").mkdir()
    assert [path.name for path in run_directories(tmp_path)] == ["a", "b"]
    assert run_directories(tmp_path / "nowhere") == []


@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl", ".lock", ".replaced", "final", "state.json"])
def test_no_link_in_a_run_directory_decides_what_is_written(tmp_path, name):
    """Its maker would choose a file of the user's: nothing is written through it, and it is named."""
    target = tmp_path / "precious"
    target.mkdir()
    (target / "step-1").mkdir()
    with claim(tmp_path / "runs", IDENTITY, run_name="a") as run:
        run.begin(total_steps=1)
    (run.path / name).unlink(missing_ok=True)
    (run.path / name).symlink_to(target)
    for overwrite in (False, True):
        with pytest.raises(RunError, match=rf"a/{name} is a symbolic link, to '{target}'"):
            claim(tmp_path / "runs", IDENTITY, run_name="a", overwrite=overwrite)
    assert [path.name for path in target.rglob("*")] == ["step-1"]


def test_a_run_name_that_is_a_link_leads_nowhere(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs" / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match=r"runs/a is a symbolic link"):
        claim(tmp_path / "runs", IDENTITY, run_name="a")
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("step", "3"), ("step", True), ("total_steps", 1.5), ("message", 7), ("metrics", []), ("host", None)],
)
def test_a_state_of_other_types_is_damaged(tmp_path, name, value):
    with claim(tmp_path, IDENTITY, run_name="a") as run:
        run.begin(total_steps=1)
    state = json.loads((run.path / "state.json").read_text())
    (run.path / "state.json").write_text(json.dumps({**state, name: value}))
    with pytest.raises(RunError, match=rf"state\.json is damaged: {name} is "):
        attach(run.path)
