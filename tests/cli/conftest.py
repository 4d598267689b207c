"""Shared by the tests of the command line: a folder to work in, a way to call it, a driver that only listens."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sftctl.cli.app import main

BASE = """\
[model]
name_or_path = "some/model"

[optim]
learning_rate = 1e-5
betas = [0.9, 0.95]

[[data.datasets]]
path = "some/rows"
"""
OVER = """\
[optim]
learning_rate = 2e-5

[env]
HF_TOKEN = "hf_sesame"
SFT_TEST_VARIABLE = "from the file"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with two files, and no settings in the environment."""
    (tmp_path / "base.toml").write_text(BASE)
    (tmp_path / "over.toml").write_text(OVER)
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("SFTCTL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "80")
    before = dict(os.environ)
    yield tmp_path
    os.environ.clear()  # of what `[env]` has set in this process
    os.environ.update(before)


@pytest.fixture
def sftctl(folder: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`sftctl("config", "show")` -> (exit code, standard output, standard error), of child processes too."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        said = capfd.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Calls of the driver, which is replaced: what it does is tested where it is."""
    calls: list[dict[str, Any]] = []

    def train(bundle: Any, **settings: Any) -> None:
        calls.append({"bundle": bundle, "environ": dict(os.environ), **settings})
        settings["reporter"].note("trained")

    driver = types.ModuleType("sftctl.engine.driver")
    driver.train = train  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sftctl.engine.driver", driver)
    return calls
