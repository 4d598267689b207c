"""What differs: by value, leaf by leaf, with both origins; entries of an array field by field."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sftctl.config import diff, show
from sftctl.config.resolve import resolve
from sftctl.errors import ConfigError


def test_values_are_compared_and_not_texts(write: Callable[..., str]) -> None:
    a = write("a.toml", "[optim]\nlearning_rate = 1e-4\n[run]\nseed = 42")
    b = write("b.yaml", "optim: {learning_rate: 0.0001}")
    assert diff.compare(a, b) == ()
    assert diff.to_patch((), a, b) == ""


def test_a_change_has_both_values_and_both_origins(write: Callable[..., str]) -> None:
    a = write("a.toml", "[optim]\nlearning_rate = 1e-4")
    (change,) = diff.compare(a, diff.sides.DEFAULTS)
    assert (change.path, change.before, change.after) == ("optim.learning_rate", 1e-4, 2e-5)
    assert (str(change.before_origin), str(change.after_origin)) == ("a.toml:2:17", "default")
    assert diff.table((change,)) == [("optim.learning_rate", "0.0001", "2e-05", "a.toml:2:17", "default")]
    assert json.loads(diff.to_json((change,))) == [
        {
            "path": "optim.learning_rate",
            "before": 1e-4,
            "after": 2e-5,
            "before_origin": "a.toml:2:17",
            "after_origin": "default",
        }
    ]


def test_a_patch_is_in_toml_by_group(write: Callable[..., str]) -> None:
    a = write("a.toml", "[run]\ntags = ['x']\n[train]\nmax_steps = 3\n[sft]\npacking = true")
    b = write("b.toml", "[data]\ndatasets = [{path = 'org/rows'}]\n[env]\nA = '1'")
    assert diff.to_patch(diff.compare(a, b), a, b) == (
        "--- a.toml\n+++ b.toml\n"
        ' [run]\n-tags = ["x"]\n+tags = []\n'
        ' [data]\n-datasets = []\n+datasets = [\n+    {path = "org/rows"},\n+]\n'
        " [sft]\n-packing = true\n+packing = false\n"
        ' [train]\n-max_steps = 3\n+max_steps = "none"\n'
        ' [env]\n+A = "1"\n'
    )


def test_entries_are_compared_field_by_field(write: Callable[..., str]) -> None:
    a = write("a.toml", "[[data.datasets]]\npath = 'org/a'\n[[data.datasets]]\npath = 'org/b'\nlimit = 5")
    b = write("b.toml", "[[data.datasets]]\npath = 'org/a'\n[[data.datasets]]\npath = 'org/b'\nsplit = 'test'")
    found = diff.compare(a, b)
    assert [(each.path, each.before, each.after) for each in found] == [
        ("data.datasets[1].split", "train", "test"),
        ("data.datasets[1].limit", 5, None),
    ]
    assert str(found[1].before_origin) == "a.toml:5:9"


def test_a_run_directory_is_its_configuration(write: Callable[..., str], folder: Path) -> None:
    resolved = resolve([write("run.toml", "[[data.datasets]]\npath = 'rows.jsonl'\n[run]\nseed = 7")])
    write("runs/one/config.toml", show.dump(resolved, "toml"))
    assert diff.compare("run.toml", "runs/one") == ()
    assert [each.path for each in diff.compare("runs/one", "defaults")] == ["run.seed", "data.datasets"]


def test_the_problems_of_both_sides_are_told(write: Callable[..., str]) -> None:
    with pytest.raises(ConfigError) as error:
        diff.compare(write("a.toml", "[run]\nsed = 1"), "missing.toml")
    assert [problem.message for problem in error.value.problems] == [
        "unknown key",
        "missing.toml: there is no such file",
    ]


def test_a_folder_that_is_no_run(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty: is a folder"):
        diff.compare("empty", "defaults")
