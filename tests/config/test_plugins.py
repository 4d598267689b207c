"""A group of somebody else's is a group like any other: file, environment, option, Python, show, init, schema."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import sftctl
from sftctl.config import explain, jsonschema, registry, scaffold, show
from sftctl.config.leaves import by_flat, groups, leaves
from sftctl.config.resolve import resolve
from sftctl.config.sources.options import Assignment
from sftctl.errors import ConfigError

PACKAGES = Path(__file__).with_name("packages")
PLUGIN = "reward_package.reward"


def forget() -> None:
    registry.unregister_all()
    for name in [name for name in sys.modules if name.partition(".")[0] == "reward_package"]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No group is registered before or after, and no entry point is found unless a test says so."""
    forget()
    monkeypatch.setattr(registry, "_any_installed", lambda: False)
    yield
    forget()


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PACKAGES))


RUN = f'plugins = ["{PLUGIN}"]\n[reward]\nscale = 2.0\njudge_path = "judge.py"\nrubrics = [{{name = "short"}}]\n'


@pytest.mark.usefixtures("package")
def test_from_file_environment_option_and_python(write: Callable[..., str], folder: Path) -> None:
    resolved = resolve(
        [write("configs/run.toml", RUN)],
        env={"SFTCTL_REWARD__STYLE": "dense"},
        options=[Assignment("--set", "set", None, "reward.rubrics+=[{name='kind', weight=2.0}]")],
        overrides={"reward.scale": 3},
    )
    reward: Any = resolved.bundle.extensions["reward"]
    assert (reward.scale, reward.style, reward.judge_path) == (3.0, "dense", str(folder / "configs/judge.py"))
    assert [(rubric.name, rubric.weight) for rubric in reward.rubrics] == [("short", 1.0), ("kind", 2.0)]
    assert resolved.bundle.reward is reward
    assert [str(each.origin) for each in resolved.nodes["reward.scale"].shadowed] == ["configs/run.toml:3:9", "default"]


@pytest.mark.usefixtures("package")
def test_an_option_by_both_spellings(write: Callable[..., str]) -> None:
    resolve([write("run.toml", RUN)])
    leaf = leaves()["reward.scale"]
    assert leaf.options == ("--reward.scale", "--reward-scale")
    assert by_flat()["reward_scale"] is leaf
    assert leaf.env == "SFTCTL_REWARD__SCALE"
    option = Assignment("--reward-scale", "option", "reward.scale", "5")
    assert resolve(["run.toml"], options=[option]).bundle.reward.scale == 5.0


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("format", show.FORMATS)
def test_what_is_shown_names_the_plugin_and_loads_equal(
    write: Callable[..., str], folder: Path, format: show.Format
) -> None:
    bundle = sftctl.load(write("run.toml", RUN))
    (folder / f"shown.{format}").write_text(show.dump(bundle, format))
    (folder / "init.toml").write_text(scaffold.scaffold(bundle))
    forget()
    assert repr(sftctl.load(f"shown.{format}").reward) == repr(bundle.reward)
    assert sftctl.load("init.toml").reward == sftctl.load(f"shown.{format}").reward


@pytest.mark.usefixtures("package")
def test_explain_and_schema_know_it(write: Callable[..., str]) -> None:
    resolve([write("run.toml", RUN)])
    explained = explain.explain("reward_scale")
    assert isinstance(explained, explain.Explanation)
    assert (explained.path, explained.unit, explained.limit) == ("reward.scale", "points", "> 0")
    assert jsonschema.schema()["properties"]["reward"]["properties"]["style"]["enum"] == ["sparse", "dense"]


@pytest.mark.usefixtures("package")
def test_its_problems_are_reported_like_any(write: Callable[..., str]) -> None:
    file = write(
        "run.toml", f'plugins = ["{PLUGIN}"]\n[reward]\nscale = 0\nstyel = "dense"\nrubrics = [{{weight = "x"}}]'
    )
    with pytest.raises(ConfigError) as error:
        resolve([file])
    assert [problem.path for problem in error.value.problems] == [
        "reward.scale",
        "reward.styel",
        "reward.rubrics[0].name",
        "reward.rubrics[0].weight",
    ]


@pytest.mark.usefixtures("package")
def test_a_leaf_called_token_is_a_secret(write: Callable[..., str]) -> None:
    resolved = resolve([write("run.toml", RUN)], overrides={"reward.token": "sesame"})
    assert resolved.bundle.reward.token == "sesame"
    for format in show.FORMATS:
        assert "sesame" not in show.dump(resolved, format)


def test_an_unregistered_group_says_how_to_get_it(write: Callable[..., str]) -> None:
    with pytest.raises(ConfigError, match="reward: unknown group"):
        resolve([write("run.toml", "[reward]\nscale = 1")])


def test_evolve_and_sweep_change_it(package: None) -> None:
    bundle = sftctl.load(overrides={"reward.scale": 2}, plugins=[PLUGIN])
    assert sftctl.evolve(bundle, {"reward.style": "dense"}).reward.scale == 2.0
    assert [each.reward.scale for each in sftctl.sweep(bundle, {"reward.scale": [1, 3]})] == [1.0, 3.0]


def test_a_package_is_found_by_its_entry_point(package: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.syspath_prepend(str(PACKAGES))
    registry.unregister_all()
    assert "reward" in groups()
    assert sftctl.load(overrides={"reward.scale": 4}).reward.scale == 4.0
    assert "plugins" not in show.tree(sftctl.load())


def test_a_broken_package_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sftctl.groups]\nbroken = broken_package\n")
    monkeypatch.undo()
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.unregister_all()
    notes = resolve().notes
    assert [note.message for note in notes] == [
        "broken_package cannot be imported: ModuleNotFoundError: No module named 'broken_package'"
    ]
    assert "entry point broken of broken" in str(notes[0].origin)


def group(**fields: Any) -> type:
    return attrs.make_class("Mine", fields, frozen=True, kw_only=True)


@pytest.mark.parametrize(
    ("name", "cls", "message"),
    [
        ("optim", group(), "is the name of a built-in group"),
        ("extends", group(), "is the name of a built-in group"),
        ("Mine", group(), "is no name for a group"),
        ("mine", attrs.make_class("Soft", {}), "is no frozen attrs class"),
        ("mine", dict, "is no frozen attrs class"),
        ("mine", group(a=attrs.field(type=int)), "has no default"),
        ("mine", group(a=attrs.field(type=complex, default=0j)), "has a type that no file can carry"),
        ("mine", group(seed=attrs.field(type=int, default=0)), "--seed is the option of run.seed"),
    ],
)
def test_a_class_that_cannot_be_a_group(name: str, cls: type, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sftctl.register_group(name, cls)


def test_two_groups_of_one_name() -> None:
    one, two = group(), group()
    sftctl.register_group("mine", one)
    sftctl.register_group("mine", one)
    with pytest.raises(ConfigError, match="is registered twice"):
        sftctl.register_group("mine", two)


def test_two_groups_of_one_name_in_a_file(
    write: Callable[..., str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "import attrs, sftctl\n@attrs.frozen\nclass Mine: pass\nsftctl.register_group('mine', Mine)"
    write("one_plugin.py", text)
    write("two_plugin.py", text)
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(ConfigError, match="is registered twice") as error:
        resolve([write("run.toml", "plugins = ['one_plugin', 'two_plugin']")])
    assert str(error.value.problems[0].origin) == "run.toml:1:26"
