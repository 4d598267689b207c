"""The edges of the program: help, exit codes, what is printed where, what is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sftctl.cli.app import main
from sftctl.config.leaves import leaves

HEAVY = ("torch", "transformers", "datasets", "numpy", "pydantic", "rich", "typer", "click")


def python(code: str, *arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter, since what is imported and how a process ends can only be seen in one."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **settings)  # type: ignore[call-overload, no-any-return]


RUN_AND_LIST = f"""
import sys
from sftctl.cli.app import main
code = main(sys.argv[1:])
print("IMPORTED", [name for name in {HEAVY!r} if name in sys.modules])
raise SystemExit(code)
"""


LIGHT = [
    "--help",
    "train --help",
    "train --lerning-rate 1",
    "trian",
    "config --help",
    "config show --learning-rate 1e-4 --origin",
    "config show --format toml",
    "config diff defaults defaults",
    "config explain learning_rate",
    "config init",
    "config schema",
    "runs --help",
]


@pytest.mark.parametrize("line", LIGHT)
def test_nothing_heavy_is_imported(line: str) -> None:
    ran = python(RUN_AND_LIST, *line.split())
    assert "Traceback" not in ran.stderr
    assert "IMPORTED []" in ran.stdout


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_is_the_answer_to_nothing(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert said.startswith("Usage: sftctl COMMAND …")
    assert "sftctl train recipe:quickstart" in said


@pytest.mark.parametrize("arguments", [["train", "--help"], ["train", "x.toml", "-h"], ["config", "--help"]])
def test_help_keeps_to_80_columns_and_cuts_nothing(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert all(len(line) <= 80 for line in said.splitlines())
    assert "..." not in said


def test_help_of_train_names_every_leaf(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["train", "--help"]) == 0
    said = capsys.readouterr().out
    words = set(said.replace("[no-]", "").replace("[=", " ").replace("=…", " ").split())
    for path, leaf in leaves().items():
        assert {path, *leaf.options} & words, f"{path} is not in the help"
        assert leaf.is_entries or leaf.help.split()[0] in words
    everything_needed = said.index("What one mostly needs")
    assert everything_needed < said.index("--learning-rate FLOAT") < said.index("All other settings")


def test_help_in_a_wide_terminal_stays_readable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["train", "--help"]) == 0
    assert max(len(line) for line in capsys.readouterr().out.splitlines()) <= 100


@pytest.mark.parametrize(
    ("line", "said", "help"),
    [
        ("trian", "trian: unknown command of `sftctl`", "did you mean 'train'?"),
        ("--versoin", "--versoin: unknown option of `sftctl`", "did you mean '--version'?"),
        ("a.toml", "a.toml: unknown command of `sftctl`", "to train with that file: sftctl train a.toml"),
        ("config shwo", "shwo: unknown command of `sftctl config`", "did you mean 'show'?"),
        ("config xyz", "xyz: unknown command of `sftctl config`", "'sftctl config --help' lists the commands"),
    ],
)
def test_a_word_that_is_no_command(line: str, said: str, help: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"error: {said}\n  = help: {help}\n"


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("sftctl ")


def test_colour_only_where_it_is_wanted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    main(["trian"])
    assert "\x1b" not in capsys.readouterr().err
    monkeypatch.setenv("FORCE_COLOR", "1")
    main(["trian"])
    assert "\x1b[1;31merror\x1b[0m" in capsys.readouterr().err
    monkeypatch.setenv("NO_COLOR", "1")
    main(["trian"])
    assert "\x1b" not in capsys.readouterr().err


def test_an_interrupt_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("sftctl.cli.app._run", interrupted)
    assert main(["train"]) == 130
    assert capsys.readouterr().err == "\nstopped\n"


def test_a_bug_shows_its_traceback_and_says_whose_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(words: list[str]) -> int:
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr("sftctl.cli.app._run", broken)
    assert main(["train"]) == 70
    said = capsys.readouterr().err
    assert "ZeroDivisionError: of ours" in said
    assert "this is a bug in sftctl" in said


def test_a_reader_that_goes_away_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    code = "import sys; from sftctl.cli.app import main; raise SystemExit(main(sys.argv[1:]))"
    with open(write, "w") as gone:
        ran = subprocess.run(
            [sys.executable, "-c", code, "train", "--help"],
            stdout=gone,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert (ran.returncode, ran.stderr) == (141, "")


def test_python_m_is_the_same(tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, "-m", "sftctl", "--version"], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("sftctl ")
