"""What a path means depends on who says it; a Hub id stays one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import sftctl
from sftctl.config import paths, rules
from sftctl.config.leaves import leaves
from sftctl.config.resolve import resolve
from sftctl.config.sources.options import Assignment

MODEL = leaves()["model.name_or_path"]


def test_relative_to_the_file_that_says_it(write: Callable[..., str], folder: Path) -> None:
    file = write("configs/run.toml", "[run]\noutput_dir = 'out'\n[[data.datasets]]\npath = '../rows.jsonl'")
    bundle = sftctl.load(file)
    assert bundle.run.output_dir == str(folder / "configs/out")
    assert bundle.data.datasets[0].path == str(folder / "rows.jsonl")


def test_relative_to_the_file_that_is_extended(write: Callable[..., str], folder: Path) -> None:
    write("configs/base.toml", "[[data.datasets]]\npath = 'rows.jsonl'")
    file = write("run.toml", "extends = ['configs/base.toml']")
    assert sftctl.load(file).data.datasets[0].path == str(folder / "configs/rows.jsonl")


def test_relative_to_the_working_directory_elsewhere(folder: Path) -> None:
    resolved = resolve(
        env={"SFTCTL_MODEL__CHAT_TEMPLATE_PATH": "a.jinja"},
        options=[Assignment("--dataset", "option", "data.datasets", "rows.jsonl")],
        overrides={"run.output_dir": Path("out")},
    )
    assert resolved.bundle.model.chat_template_path == str(folder / "a.jinja")
    assert resolved.bundle.data.datasets[0].path == str(folder / "rows.jsonl")
    assert resolved.bundle.run.output_dir == str(folder / "out")


def test_the_default_output_folder_is_below_the_working_directory(folder: Path) -> None:
    resolved = resolve()
    assert resolved.bundle.run.output_dir == str(folder / "runs")
    assert resolved.nodes["run.output_dir"].origin.kind == "default"


@pytest.mark.parametrize("text", ["org/model", "gpt2", "org/data.set"])
def test_what_is_not_there_may_be_a_hub_id(folder: Path, text: str) -> None:
    assert paths.resolve(text, MODEL, str(folder)) == text


@pytest.mark.parametrize(
    "text", ["./model", "../model", "/model", "rows.jsonl", "rows.json.gz", "part-*.parquet", "a/b[0-9].csv", ".hidden"]
)
def test_what_can_be_no_hub_id_is_a_path(folder: Path, text: str) -> None:
    found = paths.resolve(text, MODEL, str(folder))
    assert found.startswith("/")
    assert paths.is_missing(found)


def test_what_is_there_is_local(folder: Path) -> None:
    (folder / "org" / "model").mkdir(parents=True)
    found = paths.resolve("org/model", MODEL, str(folder))
    assert found == str(folder / "org/model")
    assert not paths.is_missing(found)


def test_a_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert paths.resolve("~/model", MODEL, str(folder)) == "/home/someone/model"


@pytest.mark.parametrize(
    ("path", "word"), [("checkpoint.resume", "auto"), ("checkpoint.resume", "never"), ("model.tokenizer", "bytes")]
)
def test_words_are_no_paths(write: Callable[..., str], path: str, word: str) -> None:
    group, _, name = path.partition(".")
    resolved = resolve([write("configs/run.toml", f"[{group}]\n{name} = '{word}'")])
    assert resolved.nodes[path].value == word


def test_a_wildcard_is_there_when_something_matches(folder: Path) -> None:
    (folder / "part-1.jsonl").touch()
    assert not paths.is_missing(str(folder / "part-*.jsonl"))
    assert paths.is_missing(str(folder / "piece-*.jsonl"))


def test_what_is_missing_to_train_is_said_with_its_place(write: Callable[..., str]) -> None:
    file = write("run.toml", "[model]\nname_or_path = './model'\n[[data.datasets]]\npath = 'rows.jsonl'")
    found = {problem.path: problem for problem in rules.ready(resolve([file]).facts)}
    assert set(found) == {"model.name_or_path", "data.datasets[0].path"}
    assert found["data.datasets[0].path"].message == "there is no rows.jsonl"
    assert str(found["data.datasets[0].path"].origin) == "run.toml:4:8"


def test_nothing_given_lacks_a_model_and_rows(folder: Path) -> None:
    assert [problem.path for problem in rules.ready(resolve().facts)] == ["model.name_or_path", "data.datasets"]


def test_a_random_model_needs_a_tokenizer(folder: Path) -> None:
    overrides = {
        "model.init": "random",
        "model.architecture": {"model_type": "llama"},
        "data.datasets": [{"path": "org/rows"}],
    }
    assert [each.path for each in rules.ready(resolve(overrides=overrides).facts)] == ["model.tokenizer"]
    assert rules.ready(resolve(overrides={**overrides, "model.tokenizer": "bytes"}).facts) == []
