"""Shared by the tests of the configuration: a folder to work in, and a way to write files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sftctl.config import registry


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own, and no settings in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("SFTCTL_"):
            monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def write(folder: Path) -> Callable[..., str]:
    """`write("run.toml", "[run]\\nseed = 1")` -> the file's name, relative to the working directory."""

    def write_file(name: str, content: str | bytes) -> str:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return name

    return write_file


@pytest.fixture
def fresh_registry():
    """No registered groups before and after."""
    registry.unregister_all()
    yield registry
    registry.unregister_all()
