"""Trackers with the services' own libraries, without a network: each keeps what it is told on this disk.

A run is stopped after two records and goes on with two more, as `sftctl train` would do it in two processes; here
the run directory is claimed twice. What a library has stored is read back with the library or from its file.
"""

from __future__ import annotations

import sqlite3
import sys

import pytest

from sftctl.runs.directory import Identity, claim
from sftctl.runs.trackers import start_trackers

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # what services warn of is theirs

CONFIG = {"optim": {"learning_rate": 0.1}, "env": {"HF_TOKEN": "opensesame"}}


@pytest.fixture(autouse=True)
def _a_command_line_with_a_secret(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sftctl", "train", "--set", "env.HF_TOKEN=opensesame"])


def train_in_two_halves(output_dir, name):
    """The run directory of a run that logged losses 4, 2, 4/3, 1 and was resumed after the second."""
    notes = []
    for steps in ((1, 2), (3, 4)):
        with claim(output_dir, Identity("r", "d1", {}), run_name="halves") as run:
            run.begin(total_steps=4)
            run.config.write_text("[optim]")
            with start_trackers([name], run, project="ours", tags=["first"], note=notes.append) as trackers:
                trackers.log_config(CONFIG)
                for step in steps:
                    trackers.log({"loss": 4.0 / step}, step=step)
                trackers.log_file(run.config)
                trackers.log_summary({"eval_loss": 1.5})
                trackers.finish("finished" if steps[-1] == 4 else "interrupted")
    assert notes == []
    return run.path


def stored_bytes(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "config.toml")


def test_wandb_keeps_both_halves_under_one_identity_and_no_secret(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = train_in_two_halves(tmp_path / "runs", "wandb")
    files = list(run.rglob("*.wandb"))
    assert len(files) == 2
    assert len({path.name for path in files}) == 1, "the name is the identity: a sync makes one run of both"
    stored = stored_bytes(run)
    assert all(word in stored for word in (b"learning_rate", b"eval_loss", b"first", b"ours"))
    assert b"sesame" not in stored


def test_mlflow_keeps_both_halves_in_one_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/store")
    run = train_in_two_halves(tmp_path / "runs", "mlflow")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("ours")
    (found,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 4.0), (2, 2.0), (3, 4 / 3), (4, 1.0)]
    assert (found.info.status, found.data.tags["eval_loss"], found.info.run_name) == ("FINISHED", "1.5", run.name)
    assert b"sesame" not in stored_bytes(tmp_path)


def test_trackio_keeps_both_halves_in_one_run(tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio")
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    assert trackio
    train_in_two_halves(tmp_path / "runs", "trackio")
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as stored:
        rows = stored.execute("select run_id, step, metrics from metrics order by step").fetchall()
    assert len({run_id for run_id, _, _ in rows}) == 1
    assert [step for _, step, _ in rows] == [1, 2, 3, 4]
    assert b"sesame" not in stored_bytes(tmp_path)


def test_tensorboard_keeps_both_halves(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train_in_two_halves(tmp_path / "runs", "tensorboard")
    events = EventAccumulator(str(run / "trackers" / "tensorboard"))
    events.Reload()
    assert [(event.step, round(event.value, 6)) for event in events.Scalars("loss")] == [
        (1, 4.0), (2, 2.0), (3, 1.333333), (4, 1.0),
    ]  # fmt: skip
    assert b"sesame" not in stored_bytes(run)
