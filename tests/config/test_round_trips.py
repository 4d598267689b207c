"""What is shown loads back equal, whatever the bundle: as TOML, YAML, JSON, as `init` writes it, as a patch of it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import sftctl
from sftctl.config import scaffold, secrets, show
from sftctl.config.leaves import Leaf, entry_leaves, leaves
from sftctl.config.resolve import resolve
from sftctl.config.schema import Bundle
from sftctl.errors import ConfigError

pytestmark = pytest.mark.usefixtures("folder")

# Not the text none, which no source can tell from no value, nothing that no file can hold, and no name of a secret,
# whose value no dump shows.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8).filter(
    lambda text: text.strip() and text != "none"
)
names = st.text(
    st.characters(codec="utf-8", exclude_characters="\0=", exclude_categories=["Cs"]), min_size=1, max_size=6
).filter(lambda name: not secrets.is_secret(("model", name)))
numbers = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | numbers | texts
free = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=2), max_leaves=4
)


def values_of(leaf: Leaf) -> st.SearchStrategy[Any]:
    """Values that a leaf accepts."""
    strategy = _of_type(leaf, leaf.element if leaf.is_tuple else leaf.base)
    if leaf.is_tuple:
        strategy = st.lists(strategy, min_size=leaf.length or 0, max_size=leaf.length or 2)
    return st.none() | strategy if leaf.optional else strategy


def _of_type(leaf: Leaf, kind: Any) -> st.SearchStrategy[Any]:
    if leaf.choices:
        return st.sampled_from(leaf.choices)
    if leaf.is_table:
        return st.dictionaries(names, texts if leaf.value_type is str else free, max_size=2)
    if leaf.is_entries:
        fields = entry_leaves(leaf)
        return st.fixed_dictionaries(
            {"path": texts}, optional={name: values_of(each) for name, each in fields.items() if name != "path"}
        )
    if kind is bool:
        return st.booleans()
    if kind is str:
        return texts
    low = -(2**40) if leaf.limit is None or leaf.limit.low is None else leaf.limit.low
    high = 2**40 if leaf.limit is None or leaf.limit.high is None else leaf.limit.high
    if kind is int:
        return st.integers(int(low), int(high))
    return st.floats(low, high).filter(lambda value: leaf.limit is None or leaf.limit.refuse(value) is None)


def bundles() -> st.SearchStrategy[Bundle]:
    """Bundles with some leaves set; those that a rule refuses are left out, and `env` and tables are filled."""
    every = {path: values_of(leaf) for path, leaf in leaves().items()}
    variables = st.dictionaries(
        st.from_regex(r"[A-Z]{2}[A-Z0-9_]{0,4}X", fullmatch=True), texts | st.just(""), max_size=2
    )
    return st.builds(
        _that_loads, st.fixed_dictionaries({}, optional=every), st.dictionaries(st.just("env"), variables, max_size=1)
    )


def _that_loads(overrides: dict[str, Any], env: dict[str, Any]) -> Bundle:
    for _ in range(10):
        try:
            return sftctl.load(overrides={**overrides, **env})
        except ConfigError as error:
            bad = {problem.path.partition("[")[0] for problem in error.problems}
            overrides = {path: value for path, value in overrides.items() if path not in bad}
    assume(False)
    raise AssertionError


relaxed = settings(
    max_examples=int(os.environ.get("SFTCTL_TEST_EXAMPLES", "25")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("format", show.FORMATS)
@relaxed
@given(bundle=bundles())
def test_what_is_shown_loads_equal(format: show.Format, folder: Path, bundle: Bundle) -> None:
    """load(dump(bundle)) == bundle, wherever the file lies."""
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    file = elsewhere / f"shown.{format}"
    file.write_text(show.dump(bundle, format), encoding="utf-8")
    loaded = resolve([file])
    assert loaded.bundle == bundle
    assert loaded.digest == show.digest(bundle)


@pytest.mark.parametrize("format", show.FORMATS)
@relaxed
@given(bundle=bundles())
def test_only_what_changed_loads_equal_too(format: show.Format, folder: Path, bundle: Bundle) -> None:
    """load(dump(bundle, changed)) == bundle: what is left out are defaults."""
    file = folder / f"changed.{format}"
    file.write_text(show.dump(bundle, format, changed=True), encoding="utf-8")
    assert sftctl.load(file) == bundle


@pytest.mark.parametrize("format", ["toml", "yaml"])
@relaxed
@given(bundle=bundles())
def test_a_scaffold_loads_equal(format: scaffold.Format, folder: Path, bundle: Bundle) -> None:
    """load(init(bundle)) == bundle, with paths relative to the file and without."""
    file = folder / f"init.{format}"
    for base in (None, str(folder)):
        file.write_text(scaffold.scaffold(bundle, format, folder=base), encoding="utf-8")
        assert sftctl.load(file) == bundle


@relaxed
@given(bundle=bundles())
def test_evolving_by_nothing_changes_nothing(bundle: Bundle) -> None:
    """evolve(bundle, {}) == bundle."""
    assert sftctl.evolve(bundle, {}) == bundle


@relaxed
@given(bundle=bundles())
def test_json_holds_every_leaf(bundle: Bundle) -> None:
    """Each leaf is a key of the JSON, null where it is none."""
    data = json.loads(show.dump(bundle, "json"))
    for leaf in leaves().values():
        assert leaf.name in data[leaf.group]


def test_equal_bundles_have_equal_digests(write: Callable[..., str]) -> None:
    a = resolve([write("a.toml", "[optim]\nlearning_rate = 1e-4\n[train]\nmax_steps = 1e3")])
    b = resolve([write("b.yaml", "train: {max_steps: 1000}\noptim: {learning_rate: 0.0001}")])
    assert a.bundle == b.bundle
    assert a.digest == b.digest
    assert a.digest != resolve().digest


def test_numbers_read_back_exactly(folder: Path) -> None:
    for value in (math.pi, 1e-300, 5e-324, 1.7976931348623157e308, 0.1 + 0.2, 2e-5):
        bundle = sftctl.load(overrides={"optim.learning_rate": value})
        for format in show.FORMATS:
            (folder / f"x.{format}").write_text(show.dump(bundle, format))
            assert sftctl.load(f"x.{format}").optim.learning_rate == value


def test_other_readers_of_yaml_read_the_same(folder: Path) -> None:
    """PyYAML's own YAML 1.1 reader finds the same values in what we write: numbers are numbers, text is text."""
    import yaml

    bundle = sftctl.load(
        overrides={
            "optim.learning_rate": 1e-5,
            "run.run_name": "no",
            "run.tags": ["1e5", "010", "1:30", "null", "0x1f"],
        }
    )
    for text in (show.dump(bundle, "yaml"), scaffold.scaffold(bundle, "yaml")):
        data = yaml.safe_load(text)
        assert data["optim"]["learning_rate"] == 1e-5
        assert data["run"]["run_name"] == "no"
        assert data["run"]["tags"] == ["1e5", "010", "1:30", "null", "0x1f"]


def test_every_group_is_in_every_dump() -> None:
    assert {field.name for field in attrs.fields(Bundle)} - {"env", "extensions"} <= set(show.tree(Bundle()))
