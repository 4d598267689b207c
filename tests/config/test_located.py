"""What a later room complains of says where that was set."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sftctl.config.located import located
from sftctl.config.resolve import resolve
from sftctl.errors import Origin, Problem

RUN = """\
[model]
name_or_path = "org/model"
[[data.datasets]]
path = "a.jsonl"
[[data.datasets]]
path = "b.jsonl"
columns = {prompt = "question"}
"""


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("model.name_or_path", "run.toml:2:16"),
        ("data.datasets[1]", "run.toml:5:1"),
        ("data.datasets[1].path", "run.toml:6:8"),
        ("data.datasets[1].columns.prompt", "run.toml:7:21"),
        ("data.datasets[1].split", "run.toml:5:1"),  # not said: the entry that could have said it
    ],
)
def test_a_leaf_that_was_set_has_its_line(path: str, place: str, write: Callable[..., str]) -> None:
    (found,) = located([Problem(path, "is bad")], resolve([write("run.toml", RUN)]))
    assert str(found.origin) == place


@pytest.mark.parametrize("path", ["", "model.tokenizer", "no.such", "data.datasets[9].path["])
def test_what_nobody_set_has_none_or_its_list(path: str, write: Callable[..., str]) -> None:
    (found,) = located([Problem(path, "is bad")], resolve([write("run.toml", RUN)]))
    assert found.origin is None or path.startswith("data.datasets")


def test_an_origin_that_is_known_stays(write: Callable[..., str]) -> None:
    row = Problem("data.datasets[0].path", "a broken line", Origin("data", "a.jsonl", 3))
    assert located([row], resolve([write("run.toml", RUN)])) == (row,)


def test_a_whole_source_is_found_where_it_was_named(write: Callable[..., str]) -> None:
    source = Problem("data.datasets[0].path", "has no rows", Origin("data", "a.jsonl"))
    (found,) = located([source], resolve([write("run.toml", RUN)]))
    assert str(found.origin) == "run.toml:4:8"
