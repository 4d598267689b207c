"""What is known of a leaf is found by every name it has; the JSON Schema takes what the converter takes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sftctl.config import explain, jsonschema, show
from sftctl.config.leaves import by_flat, groups, leaves
from sftctl.config.resolve import resolve
from sftctl.config.sources.options import Assignment
from sftctl.errors import ConfigError


@pytest.mark.parametrize(
    "name",
    [
        "optim.learning_rate",
        "learning_rate",
        "--learning-rate",
        "--optim.learning-rate",
        "SFTCTL_OPTIM__LEARNING_RATE",
        "learning-rate",
    ],
)
def test_a_leaf_is_found_by_every_name(name: str) -> None:
    found = explain.explain(name)
    assert isinstance(found, explain.Explanation)
    assert found.path == "optim.learning_rate"
    assert (found.type, found.default, found.limit) == ("number", "2e-05", "> 0")


def test_every_leaf_is_explained_by_its_path_and_its_short_name() -> None:
    for leaf in leaves().values():
        assert explain.explain(leaf.path) == explain.explain(leaf.flat) == explain.of_leaf(leaf)


def test_a_group_is_an_overview() -> None:
    found = explain.explain("optim")
    assert isinstance(found, explain.GroupOverview)
    assert [row[0] for row in found.leaves] == [leaf.path for leaf in groups()["optim"].leaves]
    assert [each.name for each in explain.everything()] == list(groups())


def test_an_array_of_tables_is_explained_with_its_fields() -> None:
    found = explain.explain("data.datasets")
    assert isinstance(found, explain.Explanation)
    assert "columns" in [name for name, _, _ in found.fields]


def test_rules_are_named_on_both_sides() -> None:
    rank, switch = explain.explain("lora_r"), explain.explain("use_peft")
    assert isinstance(rank, explain.Explanation)
    assert isinstance(switch, explain.Explanation)
    assert "has no effect without peft.use_peft = true" in rank.rules
    assert any("peft.lora_r" in rule for rule in switch.rules)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("lerning_rate", "optim.learning_rate"), ("optim.lr", "optim.learning_rate"), ("dataset_name", "TRL's")],
)
def test_what_is_none_is_refused_with_a_hint(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        explain.explain(name)


def test_every_spelling_that_is_shown_works(write: Callable[..., str], folder: Path) -> None:
    """The TOML line, the variable and --set of each leaf resolve, each to a value of that leaf."""
    for leaf in leaves().values():
        spelling = dict(explain.of_leaf(leaf).spellings)
        header, _, line = spelling["TOML"].partition(" ")
        texts = spelling["--set"].removeprefix("--set '").removesuffix("'")
        name, _, text = spelling["environment"].partition("=")
        for sources in (
            {"files": [write("run.toml", f"{header}\n{line}")]},
            {"options": [Assignment("--set", "set", None, texts)]},
            {"env": {name: text}},
        ):
            assert refused(sources) <= {"has no effect", "not available", "has no model_type"}, (leaf.path, sources)


def refused(sources: dict[str, Any]) -> set[str]:
    """What kind of complaint there is: of a rule about another leaf, or of one that is not there yet."""
    kinds = ("has no effect", "not available", "has no model_type", "expected", "unknown", "no such", "needs")
    try:
        resolve(**sources)
    except ConfigError as error:
        return {next((kind for kind in kinds if kind in each.message), each.message) for each in error.problems}
    return set()


KINDS: dict[str, Callable[[Any], bool]] = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "boolean": lambda v: isinstance(v, bool),
    "number": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool),
    "integer": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and float(v).is_integer(),
}


def accepts(schema: dict[str, Any], value: Any) -> bool:
    """JSON Schema 2020-12, as far as ours goes: slow, obvious, and independent of how it was made."""
    if "anyOf" in schema and not any(accepts(each, value) for each in schema["anyOf"]):
        return False
    if "enum" in schema and not any(type(value) is type(each) and value == each for each in schema["enum"]):
        return False
    if "type" in schema and not KINDS[schema["type"]](value):
        return False
    if isinstance(value, dict):
        return _accepts_object(schema, value)
    if isinstance(value, list):
        size = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf)
        return size and all(accepts(schema.get("items", {}), each) for each in value)
    if isinstance(value, str):
        return len(value) >= schema.get("minLength", 0)
    return not KINDS["number"](value) or (
        schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf)
        and schema.get("exclusiveMinimum", -math.inf) < value < schema.get("exclusiveMaximum", math.inf)
    )


def _accepts_object(schema: dict[str, Any], value: dict[str, Any]) -> bool:
    properties, extra = schema.get("properties", {}), schema.get("additionalProperties", True)
    if any(name not in value for name in schema.get("required", [])):
        return False
    rest = {name: properties.get(name, extra) for name in value}
    return all(rule is not False and (rule is True or accepts(rule, value[name])) for name, rule in rest.items())


def test_the_schema_takes_what_is_shown(write: Callable[..., str]) -> None:
    file = write(
        "run.toml", "[model]\narchitecture = {a = 1}\n[[data.datasets]]\npath = 'org/a'\nlimit = 3\n[env]\nA = '1'"
    )
    for source in ([], [file]):
        assert accepts(jsonschema.schema(), json.loads(show.dump(resolve(source), "json")))


@pytest.mark.parametrize(
    "data",
    [
        {"optim": {"learning_rate": "2e-5"}},
        {"optim": {"learning_rate": 0}},
        {"optim": {"lerning_rate": 1}},
        {"optim": {"betas": [0.9]}},
        {"optim": {"betas": [0.9, 1.0]}},
        {"optimiser": {}},
        {"run": {"seed": 1.5}},
        {"run": {"seed": True}},
        {"run": {"tags": "x"}},
        {"sft": {"packing": 1}},
        {"sft": {"loss_type": "orpo"}},
        {"train": {"gradient_checkpointing": "true"}},
        {"train": {"max_steps": 0}},
        {"data": {"datasets": [{}]}},
        {"data": {"datasets": [{"path": "x", "pth": 1}]}},
        {"data": {"datasets": [{"path": "x", "columns": {"a": 1}}]}},
        {"env": {"A": 1}},
        {"optim": 3},
        {"extends": 3},
        [],
    ],
)
def test_the_schema_refuses_what_the_converter_refuses(data: Any, write: Callable[..., str]) -> None:
    assert not accepts(jsonschema.schema(), data)
    with pytest.raises(ConfigError):
        resolve([write("run.json", json.dumps(data))])


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"train": {"max_steps": 1e3}},
        {"train": {"max_steps": None}},
        {"train": {"gradient_checkpointing": False}},
        {"train": {"gradient_checkpointing": "selective"}},
        {"model": {"architecture": {"a": [1, {"b": None}]}}},
        {"data": {"datasets": [{"path": "x", "columns": {"a": "b"}}]}},
        {"extends": []},
    ],
)
def test_the_schema_takes_what_the_converter_takes(data: Any, write: Callable[..., str]) -> None:
    assert accepts(jsonschema.schema(), data)
    resolve([write("run.json", json.dumps(data))])


def test_the_schema_names_its_dialect_and_every_leaf() -> None:
    schema = json.loads(jsonschema.dump())
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for leaf in leaves().values():
        described = schema["properties"][leaf.group]["properties"][leaf.name]
        assert described["description"].startswith(leaf.help)
    assert len(by_flat()) == len(leaves())
