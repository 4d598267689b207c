"""Trackers: a table of rows; what is not installed, what fails at start, what fails later."""

import sys
import types
from typing import get_args, get_type_hints

import pytest

from sftctl.config.schema import Log
from sftctl.errors import Interrupted, Problem, RunError
from sftctl.runs import trackers as module
from sftctl.runs.directory import Identity, claim
from sftctl.runs.trackers import TRACKERS, start_trackers


class Recorder:
    """Any module, object or function: remembers what was called on it, by dotted name."""

    def __init__(self, calls, name=""):
        self._calls, self._name = calls, name

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Recorder(self._calls, f"{self._name}.{name}".lstrip("."))

    def __call__(self, *arguments, **keywords):
        self._calls.append((self._name, arguments, keywords))
        return Recorder(self._calls, f"{self._name}()")

    def __str__(self):
        return self._name


class FakeMlflow(Recorder):
    def start_run(self, **keywords):
        self._calls.append(("start_run", (), keywords))
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))


@pytest.fixture
def run(tmp_path):
    with claim(tmp_path, Identity("r", "d1", {}), run_name="a") as run:
        run.begin(total_steps=1)
        yield run


@pytest.fixture
def notes():
    return []


def test_the_table_has_a_row_for_each_choice_of_the_schema():
    (choices, _) = get_args(get_type_hints(Log)["report_to"])
    assert tuple(TRACKERS) == get_args(choices)


@pytest.mark.parametrize("name", TRACKERS)
def test_what_is_not_installed_is_named_with_its_extra(run, notes, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(
        module, "import_module", lambda module: (_ for _ in ()).throw(ImportError(f"No module {module}"))
    )
    with pytest.raises(
        RunError, match=rf"log\.report_to: \"{name}\" is not installed .*pip install 'sftctl\[{name}\]'"
    ):
        start_trackers([name], run, project=None, note=notes.append)


def test_other_ranks_start_nothing(run, notes):
    trackers = start_trackers(["wandb"], run, project=None, is_main=False, note=notes.append)
    trackers.log({"loss": 1.0}, step=1)
    trackers.finish("finished")
    assert notes == []


def calls_of(name, run, notes, monkeypatch):
    calls = []
    fake = Recorder(calls)
    if name == "mlflow":  # its run id is written to a file, so it has to be a text
        fake = FakeMlflow(calls)
    monkeypatch.setattr(module, "import_module", lambda _: fake)
    trackers = start_trackers([name], run, project="p", tags=["t"], note=notes.append)
    trackers.log_config({"env": {"HF_TOKEN": "abc"}, "optim": {"learning_rate": 0.1}})
    trackers.log({"loss": 2.0, "grad_norm": float("nan"), "samples": [1], "flag": True}, step=3)
    trackers.log_summary({"eval_loss": 1.0})
    trackers.log_file(run.config)
    trackers.finish("finished")
    assert notes == []
    assert "abc" not in repr(calls)
    return calls


def started_with(calls):
    """The keywords of the one `init`."""
    (found,) = (keywords for name, _, keywords in calls if name == "init")
    return found


def test_wandb_is_told_everything_once(run, notes, monkeypatch):
    calls = calls_of("wandb", run, notes, monkeypatch)
    keywords = started_with(calls)
    assert (keywords["project"], keywords["name"], keywords["resume"]) == ("p", "a", "allow")
    assert ("init().log", ({"loss": 2.0},), {"step": 3}) in calls
    assert calls[-1] == ("init().finish", (), {"exit_code": 0})


def test_a_resumed_run_goes_on_under_the_same_identity_and_a_replaced_one_does_not(run, notes, monkeypatch):
    first = started_with(calls_of("wandb", run, notes, monkeypatch))["id"]
    run.close()
    with claim(run.path.parent, Identity("r", "d1", {}), run_name="a") as resumed:
        assert started_with(calls_of("wandb", resumed, notes, monkeypatch))["id"] == first
        resumed.state = type(resumed.state)(**{**vars_of(resumed.state), "started": "2020-01-01T00:00:00+00:00"})
        assert started_with(calls_of("wandb", resumed, notes, monkeypatch))["id"] != first


def vars_of(state):
    return {name: getattr(state, name) for name in state.__dataclass_fields__}


def test_mlflow_finds_its_run_again(run, notes, monkeypatch):
    def run_ids(calls):
        return [keywords["run_id"] for name, _, keywords in calls if name == "start_run"]

    assert run_ids(calls_of("mlflow", run, notes, monkeypatch)) == [None]
    run.close()
    with claim(run.path.parent, Identity("r", "d1", {}), run_name="a") as resumed:
        calls = calls_of("mlflow", resumed, notes, monkeypatch)
    assert run_ids(calls) == ["r1"]
    assert ("log_metrics", ({"loss": 2.0},), {"step": 3}) in calls


def test_trackio_is_told(run, notes, monkeypatch):
    calls = calls_of("trackio", run, notes, monkeypatch)
    assert [name for name, _, _ in calls] == ["init", "init().config.update", "init().log", "init().finish"]


def test_tensorboard_files_read_back(run, notes):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trackers = start_trackers(["tensorboard"], run, project=None, note=notes.append)
    trackers.log_config({"optim": {"learning_rate": 0.5}})
    for step in (1, 2):
        trackers.log({"loss": 1 / step}, step=step)
    trackers.finish("finished")
    assert notes == []
    events = EventAccumulator(str(run.trackers / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 0.5)]
    assert b"optim.learning_rate = 0.5" in events.Tensors("config")[0].tensor_proto.string_val[0]


class Failing:
    def __init__(self, session):
        pass

    def log(self, metrics, *, step):
        raise ConnectionError("no route to https://me:pw@host")


def test_a_tracker_that_fails_during_the_run_is_said_once_and_left_alone(run, notes, monkeypatch):
    monkeypatch.setitem(TRACKERS, "failing", Failing)
    trackers = start_trackers(["failing"], run, project=None, note=notes.append)
    for step in range(3):
        trackers.log({"loss": 1.0}, step=step)
    assert notes == ["failing failed and is left alone from here on: no route to https://***@host"]


def test_a_tracker_that_does_not_start_stops_the_run(run, notes, monkeypatch):
    def refuse(session):
        raise ValueError("not logged in")

    monkeypatch.setitem(TRACKERS, "refusing", refuse)
    with pytest.raises(RunError, match='"refusing" did not start: not logged in; log in to it'):
        start_trackers(["refusing"], run, project=None, note=notes.append)


@pytest.mark.parametrize(
    ("error", "phase"),
    [(Interrupted(Problem("", "stopped")), 1), (RuntimeError("lost"), 1), (KeyboardInterrupt(), None)],
)
def test_a_run_that_does_not_finish_is_told_too_unless_it_is_left_at_once(run, notes, monkeypatch, error, phase):
    calls = []
    monkeypatch.setattr(module, "import_module", lambda _: Recorder(calls))
    with pytest.raises(type(error)), start_trackers(["wandb"], run, project=None, note=notes.append):
        raise error
    ends = [keywords["exit_code"] for name, _, keywords in calls if name == "init().finish"]
    assert ends == ([] if phase is None else [phase])
