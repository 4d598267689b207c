"""environment.json, origins.json, data.json, dropped.jsonl."""

import json
import subprocess

import pytest

from sftctl.runs.directory import Identity, claim
from sftctl.runs.environment import describe, git_commit, versions, write_environment
from sftctl.runs.files import read_json
from sftctl.runs.ledger import read_ledger, write_ledger
from sftctl.runs.origins import write_origins


@pytest.fixture
def run(tmp_path):
    with claim(tmp_path / "runs", Identity("r", "d1", {}), run_name="a") as run:
        run.begin(total_steps=1)
        yield run


def test_the_environment_holds_what_ran_and_no_secret(run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrst")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    environment = describe(device="cpu", command=["sftctl", "train", "--hub-token", "hunter2"], details={"cuda": None})
    write_environment(run, environment)
    text = run.environment.read_text()
    assert "hf_abc" not in text
    assert "hunter2" not in text
    stored = json.loads(text)
    assert stored["command"] == ["sftctl", "train", "--hub-token", "***"]
    assert stored["variables"]["OMP_NUM_THREADS"] == "2"
    assert stored["packages"]["torch"]
    assert "cuda" in stored


def test_versions_names_only_what_is_installed():
    assert list(versions(["pytest", "no-such-package-anywhere"])) == ["pytest"]


def test_the_commit_and_whether_files_differ_from_it(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    assert git_commit(tmp_path) is None
    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-q", "-m", "a")
    clean = git_commit(tmp_path)
    (tmp_path / "a").write_text("2")
    assert (clean["changed"], git_commit(tmp_path)["changed"]) == (False, True)
    assert len(clean["commit"]) == 40
    assert git_commit(tmp_path / "nowhere") is None


def test_origins_keep_order_and_hide_secrets(run):
    write_origins(
        run,
        {
            "optim.learning_rate": {"value": 1e-3, "origin": "a.toml:3:1", "shadowed": [[2e-5, "default"]]},
            "env.HF_TOKEN": {"value": "abc", "origin": "a.toml:9:1", "shadowed": [["old", "b.toml"]]},
        },
    )
    stored = read_json(run.origins)
    assert list(stored) == ["optim.learning_rate", "env.HF_TOKEN"]
    assert stored["optim.learning_rate"]["shadowed"] == [[2e-5, "default"]]
    assert stored["env.HF_TOKEN"] == {"value": "***", "origin": "a.toml:9:1", "shadowed": []}


def test_the_ledger_names_each_dropped_row(run):
    dropped = [{"source": "a.jsonl", "row": 3, "reason": "no column 'answer'"}, {"source": "é.jsonl", "row": 4}]
    write_ledger(run, {"sources": [{"path": "a.jsonl", "read": 5, "kept": 3}]}, dropped)
    assert [json.loads(line) for line in run.dropped.read_text().splitlines()] == dropped
    assert read_ledger(run)["sources"][0]["kept"] == 3
