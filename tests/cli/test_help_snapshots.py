"""The help of every command at 80 columns, kept as files that a reader can look through in snapshots/.

After a change that is meant, write them anew:  SFTCTL_WRITE_SNAPSHOTS=1 pytest tests/cli/test_help_snapshots.py
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sftctl.cli.app import ROOT, main
from sftctl.cli.command import Group

SNAPSHOTS = Path(__file__).with_name("snapshots")


def every_command(group: Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name in group.entries:
        command = group.command(name)
        if isinstance(command, Group):
            yield from every_command(command, (*path, name))
        else:
            yield (*path, name)


@pytest.mark.parametrize("path", list(every_command(ROOT)), ids=" ".join)
def test_help(path: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*path, "--help"]) == 0
    said = capsys.readouterr().out
    file = SNAPSHOTS / f"{'-'.join(('sftctl', *path))}.txt"
    if os.environ.get("SFTCTL_WRITE_SNAPSHOTS"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(said, encoding="utf-8")
    assert all(len(line) <= 80 for line in said.splitlines())
    assert said == file.read_text(encoding="utf-8")


def test_no_snapshot_is_left_of_a_command_that_is_gone() -> None:
    names = {"-".join(("sftctl", *path)) for path in every_command(ROOT)}
    assert {file.stem for file in SNAPSHOTS.iterdir()} == names
