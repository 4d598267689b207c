"""load, evolve, sweep: values in, values out, and nothing assigned."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

import sftctl
from sftctl.config.schema import Dataset
from sftctl.errors import ConfigError


def test_load_lays_overrides_over_files(write: Callable[..., str]) -> None:
    file = write("run.toml", "[optim]\nlearning_rate = 1e-5\nweight_decay = 0.1")
    bundle = sftctl.load(file, overrides={"optim.learning_rate": 1e-4, "sft": {"packing": True}})
    assert (bundle.optim.learning_rate, bundle.optim.weight_decay, bundle.sft.packing) == (1e-4, 0.1, True)


def test_load_reads_the_environment_only_when_asked(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("SFTCTL_RUN__SEED", "7")
    assert sftctl.load().run.seed == 42
    assert sftctl.load(env=True).run.seed == 7
    assert sftctl.load(env={"SFTCTL_RUN__SEED": "8"}).run.seed == 8


def test_entries_may_be_given_as_themselves(folder: Path) -> None:
    bundle = sftctl.load(overrides={"data.datasets": [Dataset(path="org/rows", split="test")]})
    assert bundle.data.datasets == (Dataset(path="org/rows", split="test"),)


def test_a_whole_group_may_be_given_as_itself(folder: Path) -> None:
    bundle = sftctl.load(overrides={"optim": attrs.evolve(sftctl.Bundle().optim, learning_rate=3e-4)})
    assert bundle.optim.learning_rate == 3e-4


def test_evolve_leaves_the_bundle_as_it_was(folder: Path) -> None:
    bundle = sftctl.load(overrides={"env.A": "1"})
    changed = sftctl.evolve(bundle, {"sft.packing": True, "env.B": "2"})
    assert (bundle.sft.packing, changed.sft.packing) == (False, True)
    assert (bundle.env, changed.env) == ({"A": "1"}, {"A": "1", "B": "2"})


def test_evolve_validates_anew(folder: Path) -> None:
    with pytest.raises(ConfigError) as error:
        sftctl.evolve(sftctl.load(), {"optim.learning_rate": -1.0, "sft.packing_strategy": "wrapped", "run.sed": 3})
    assert [problem.path for problem in error.value.problems] == ["optim.learning_rate", "run.sed"] or [
        problem.path for problem in error.value.problems
    ] == ["run.sed", "optim.learning_rate"]


def test_an_error_says_where_the_call_stands(folder: Path) -> None:
    with pytest.raises(ConfigError) as error:
        sftctl.evolve(sftctl.load(), {"run.seed": "x"})
    origin = error.value.problems[0].origin
    assert origin is not None
    assert origin.name.endswith("test_python.py")
    assert "sftctl.evolve(sftctl.load()" in Path(__file__).read_text().splitlines()[origin.line - 1]


def test_a_switch_that_is_turned_off_keeps_its_settings(folder: Path) -> None:
    """An ablation: the adapter's rank stays in the bundle, idle, and comes back with the switch."""
    packed = sftctl.load(overrides={"sft.packing": True, "sft.packing_strategy": "wrapped"})
    plain = sftctl.evolve(packed, {"sft.packing": False})
    assert plain.sft.packing_strategy == "wrapped"
    assert sftctl.evolve(plain, {"run.seed": 1}).sft.packing_strategy == "wrapped"
    assert sftctl.evolve(plain, {"sft.packing": True}) == packed


def test_sweep_goes_over_the_grid_in_order(folder: Path) -> None:
    found = [
        (bundle.optim.learning_rate, bundle.sft.loss_type)
        for bundle in sftctl.sweep(
            sftctl.load(), {"optim.learning_rate": [1e-5, 2e-5], "sft.loss_type": ("nll", "dft")}
        )
    ]
    assert found == [(1e-5, "nll"), (1e-5, "dft"), (2e-5, "nll"), (2e-5, "dft")]


def test_sweep_over_nothing_is_the_bundle(folder: Path) -> None:
    assert list(sftctl.sweep(sftctl.load(), {})) == [sftctl.load()]


def test_sweep_checks_every_point_before_the_first(folder: Path) -> None:
    with pytest.raises(ConfigError) as error:
        sftctl.sweep(sftctl.load(), {"optim.learning_rate": [1e-5, -1.0, "x"], "run.seed": [1, 2]})
    assert [problem.message for problem in error.value.problems] == [
        "must be > 0, got -1.0",
        "expected a number, got text 'x'",
    ]


@pytest.mark.parametrize("values", ["abc", [], 3])
def test_sweep_wants_lists(folder: Path, values: object) -> None:
    with pytest.raises(ConfigError, match="a sweep goes over a list of values"):
        sftctl.sweep(sftctl.load(), {"run.seed": values})


def test_a_bundle_is_frozen_and_says_what_to_do() -> None:
    bundle = sftctl.Bundle()
    for change in (
        lambda: setattr(bundle, "sft", None),
        lambda: setattr(bundle.sft, "packing", True),
        lambda: delattr(bundle.sft, "packing"),
        lambda: bundle.env.__setitem__("A", "1"),
    ):
        with pytest.raises((AttributeError, TypeError), match=r"sftctl\.evolve makes a changed copy"):
            change()


def test_a_bundle_travels(folder: Path) -> None:
    bundle = sftctl.load(overrides={"model.architecture": {"a": [1, {"b": None}]}, "env.A": "1"})
    assert pickle.loads(pickle.dumps(bundle)) == bundle
    assert copy.deepcopy(bundle) == bundle
    assert hash(bundle) == hash(copy.deepcopy(bundle))


def test_overrides_that_hold_themselves(folder: Path) -> None:
    loop: dict[str, object] = {}
    loop["a"] = loop
    with pytest.raises(ConfigError, match="nested too deeply"):
        sftctl.load(overrides={"model.architecture": loop})


def test_every_public_name_is_there() -> None:
    for name in sftctl.__all__:
        assert name in dir(sftctl)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sftctl.nothing  # noqa: B018
