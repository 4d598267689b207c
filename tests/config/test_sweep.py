"""The grid of --over: its order, its names, and its errors before the first run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sftctl.config.sources.options import Assignment
from sftctl.config.sweep import points, split
from sftctl.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1e-5,2e-5", ["1e-5", "2e-5"]),
        ("a", ["a"]),
        ("[0.9,0.95],[0.8,0.99]", ["[0.9,0.95]", "[0.8,0.99]"]),
        ("'a,b','c'", ["'a,b'", "'c'"]),
        ("{a = 1, b = 2},{}", ["{a = 1, b = 2}", "{}"]),
        (" a , b ", ["a", "b"]),
    ],
)
def test_values_are_split_at_commas_outside_brackets(text: str, parts: list[str]) -> None:
    assert list(split(text)) == parts


def test_the_last_key_changes_fastest_and_names_the_run(write: Callable[..., str]) -> None:
    file = write("run.toml", "[run]\nseed = 7")
    found = points([file], ["optim.learning_rate=1e-5,2e-5", "sft.loss_type=nll,dft"])
    assert [point.name for point in found] == [
        "learning_rate=1e-5,loss_type=nll",
        "learning_rate=1e-5,loss_type=dft",
        "learning_rate=2e-5,loss_type=nll",
        "learning_rate=2e-5,loss_type=dft",
    ]
    assert [point.resolved.bundle.optim.learning_rate for point in found] == [1e-5, 1e-5, 2e-5, 2e-5]
    assert {point.resolved.bundle.run.seed for point in found} == {7}
    assert str(found[0].resolved.nodes["optim.learning_rate"].origin) == "--over"


def test_equal_values_are_one_run(folder: Path) -> None:
    assert len(points([], ["run.seed=1,1,2"])) == 2


def test_every_point_is_checked_before_the_first(folder: Path) -> None:
    with pytest.raises(ConfigError) as error:
        points([], ["optim.learning_rate=1e-5,fast", "run.sed=1,2", "tags", "run.seed=1", "run.seed=2"])
    assert {problem.message for problem in error.value.problems} == {
        "expected a number, got 'fast'",
        "there is no such setting",
        "'tags' is no list of values to go over",
        "is given twice by --over",
    }


def test_a_key_that_an_option_sets_too_is_an_error(folder: Path) -> None:
    with pytest.raises(ConfigError, match="is given twice, by --seed and --over"):
        points([], ["run.seed=1,2"], options=[Assignment("--seed", "option", "run.seed", "3")])
