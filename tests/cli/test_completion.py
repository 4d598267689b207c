"""What a shell is offered, through the protocol of Typer's scripts for bash, zsh and fish."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sftctl.cli.app import main

Bash = Callable[..., list[str]]


@pytest.fixture
def bash(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bash:
    """`bash("train", "--loss")`: the words as bash cuts them, the last one being completed."""

    def complete(*words: str) -> list[str]:
        monkeypatch.setenv("_SFTCTL_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", " ".join(("sftctl", *words)))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        assert main([]) == 0
        return capsys.readouterr().out.split()

    return complete


def test_commands(bash: Bash) -> None:
    assert "train" in bash("")
    assert bash("tr") == ["train"]
    assert "show" in bash("config", "")
    assert bash("--ver") == ["--version"]


def test_options_of_the_schema_in_the_spelling_that_was_begun(bash: Bash) -> None:
    assert bash("train", "--learning") == ["--learning-rate"]
    assert bash("train", "--learning_") == ["--learning_rate"]
    assert bash("train", "--optim.l") == ["--optim.learning-rate", "--optim.lr-scheduler-type"]
    assert bash("train", "--no-pack") == ["--no-packing"]
    assert bash("train", "--dry") == ["--dry-run"]
    assert bash("train", "a.toml", "--seed", "1", "--eval-s") == ["--eval-steps", "--eval-samples"]
    assert not any(option.startswith("--no-") for option in bash("train", "--"))


def test_choices(bash: Bash) -> None:
    assert bash("train", "--loss-type", "") == ["nll", "dft"]
    assert bash("train", "--optim.optimizer", "adamw") == ["adamw", "adamw_8bit"]
    assert bash("train", "--loss-type", "=", "d") == ["dft"]  # bash cuts at the equals sign
    assert bash("train", "--loss-type", "=") == ["nll", "dft"]
    assert bash("train", "--packing", "=", "t") == ["true"]
    assert bash("train", "--report-to", "w") == ["wandb"]
    assert bash("train", "--resume", "n") == ["never"]


def test_keys_of_set(bash: Bash) -> None:
    assert bash("train", "--set", "optim.b") == ["optim.betas="]
    assert bash("train", "--set", "~optim.b") == ["~optim.betas"]


def test_recipes_and_files(bash: Bash, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sftctl.config.recipes.names", lambda: ("long", "quickstart"))
    (tmp_path / "rerun.toml").touch()
    assert bash("train", "re") == ["recipe:long", "recipe:quickstart", "rerun.toml"]
    assert bash("train", "recipe", ":", "q") == ["quickstart"]  # bash cuts at the colon
    assert bash("train", "recipe", ":") == ["long", "quickstart"]
    assert bash("train", "--recipe", "q") == ["quickstart"]
    # Nothing is the answer that makes the shell offer files by itself, with its own way of showing folders.
    assert bash("train", "rer") == []
    assert bash("train", "--dataset", "") == []
    assert bash("train", "--output-dir", "r") == []


@pytest.mark.parametrize(("typed", "offered"), [("--loss-type=d", '"--loss-type=dft"'), ("--loss-type d", '"dft"')])
def test_zsh(typed: str, offered: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("_SFTCTL_COMPLETE", "complete_zsh")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", f"sftctl train {typed}")
    assert main([]) == 0
    assert capsys.readouterr().out.strip() == f"_arguments '*: :(({offered}))'"


def test_fish_shows_what_an_option_means(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("_SFTCTL_COMPLETE", "complete_fish")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "sftctl train --max-l")
    assert main([]) == 0
    assert capsys.readouterr().out == "--max-length\tLongest sequence.\n"


def test_a_bug_writes_nothing_over_the_line(bash: Bash, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError

    monkeypatch.setattr("sftctl.cli.completion.leaves", broken)
    with pytest.raises(AssertionError):
        bash("train", "--")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_SFTCTL_COMPLETE", f"source_{shell}")
    assert main([]) == 0
    assert f"_SFTCTL_COMPLETE=complete_{shell}" in capsys.readouterr().out
