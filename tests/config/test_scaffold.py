"""`config init`: every leaf stands in the file with its help, and the file loads."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import sftctl
from sftctl.config import recipes, scaffold
from sftctl.config.leaves import groups, leaves
from sftctl.config.resolve import resolve
from sftctl.errors import ConfigError


@pytest.mark.parametrize("format", ["toml", "yaml"])
def test_every_leaf_stands_there_with_its_help(format: scaffold.Format, folder: Path) -> None:
    text = scaffold.scaffold(resolve().bundle, format)
    words = " ".join(text.replace("#", " ").split())
    for leaf in leaves().values():
        assert " ".join(leaf.help.split()) in words, leaf.path
    assert max(len(line) for line in text.splitlines()) <= 110


def test_a_default_that_is_uncommented_is_the_default(write: Callable[..., str]) -> None:
    """Taking every mark away changes nothing: what stands behind them are the defaults, in valid TOML."""
    text = scaffold.scaffold(resolve().bundle)
    uncommented = re.sub(r"^# ([\w.]+ = )", r"\1", text, flags=re.MULTILINE).replace('NAME = "value"\n', "")
    uncommented = uncommented.replace('output_dir = "runs"', "")  # which would now be relative to the file
    data = tomllib.loads(uncommented)
    assert set(data) == set(groups())
    assert sum(len(table) for table in data.values()) == len(leaves()) - 1
    assert sftctl.load(write("all.toml", uncommented)) == sftctl.load()


@pytest.mark.parametrize("format", ["toml", "yaml"])
def test_the_minimal_file_loads_as_it_says(format: scaffold.Format, write: Callable[..., str], folder: Path) -> None:
    bundle = sftctl.load(write(f"run.{format}", scaffold.minimal(format)))
    assert bundle.model.name_or_path == scaffold.MINIMAL["model.name_or_path"]
    assert bundle.data.datasets[0].path == str(folder / "train.jsonl")
    assert bundle.sft.packing is True


@pytest.mark.parametrize("format", ["toml", "yaml"])
def test_a_recipe_becomes_a_file_that_loads_equal(format: scaffold.Format, write: Callable[..., str]) -> None:
    for name in recipes.names():
        bundle = sftctl.load(f"recipe:{name}")
        assert sftctl.load(write(f"run.{format}", scaffold.from_recipe(name, format))) == bundle


def test_an_unknown_recipe_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such recipe"):
        scaffold.from_recipe("nothing")


def test_nothing_is_overwritten_without_force(write: Callable[..., str], folder: Path) -> None:
    file = write("run.toml", "mine")
    with pytest.raises(ConfigError, match=r"run\.toml: is there already.*--force"):
        scaffold.write(file, "yours")
    assert (folder / file).read_text() == "mine"
    scaffold.write(file, "yours", force=True)
    assert (folder / file).read_text() == "yours"
    assert [path.name for path in folder.iterdir()] == ["run.toml"]


def test_a_place_that_cannot_be_written_is_said(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"no/run\.toml: cannot be written: no such file or directory"):
        scaffold.write("no/run.toml", "x")


def test_a_folder_in_its_place_leaves_nothing_behind(folder: Path) -> None:
    (folder / "run.toml").mkdir()
    with pytest.raises(ConfigError, match=r"run\.toml: cannot be written: is a directory"):
        scaffold.write("run.toml", "x", force=True)
    assert [path.name for path in folder.iterdir()] == ["run.toml"]


@pytest.mark.parametrize("format", ["toml", "yaml"])
def test_the_folder_of_the_file_is_a_dot(format: scaffold.Format, folder: Path) -> None:
    bundle = sftctl.load(overrides={"run.output_dir": str(folder)})
    file = folder / f"run.{format}"
    file.write_text(scaffold.scaffold(bundle, format, folder=str(folder)), encoding="utf-8")
    assert f"{folder}" not in file.read_text(encoding="utf-8")
    assert sftctl.load(file) == bundle
