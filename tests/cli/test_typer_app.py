"""The Typer application, as a program that embeds it sees it; a call from the shell does without Typer."""

from __future__ import annotations

import typer
from typer.testing import CliRunner

from sftctl.cli.app import app

RUNNER = CliRunner()


def test_it_is_an_app_with_the_same_commands() -> None:
    assert isinstance(app, typer.Typer)
    shown = RUNNER.invoke(app, ["config", "show", "--learning-rate", "1e-4", "--changed"])
    assert (shown.exit_code, shown.stdout) == (0, "[optim]\n  learning_rate  0.0001\n")
    assert RUNNER.invoke(app, []).stdout.startswith("Usage: ")
    assert "--optim.weight-decay FLOAT" in RUNNER.invoke(app, ["train", "--help"]).stdout


def test_what_is_wrong_is_our_report_and_our_exit_code() -> None:
    for line, said in (("config show --lerning-rate 1", "--lerning-rate: unknown option"), ("trian", "did you mean")):
        ended = RUNNER.invoke(app, line.split())
        assert ended.exit_code == 2
        assert said in ended.stderr
        assert "Traceback" not in ended.stderr


def test_it_can_be_part_of_another_app() -> None:
    other = typer.Typer()
    other.add_typer(app, name="tune")

    @other.command()
    def something() -> None: ...

    ended = RUNNER.invoke(other, ["tune", "config", "diff", "defaults", "defaults"])
    assert (ended.exit_code, ended.stdout) == (0, "nothing differs\n")
