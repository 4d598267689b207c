"""Every key and value of a file is where the reader says it is: the text there reads back as that value."""

from __future__ import annotations

import json as std_json
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import tomli_w
import yaml as pyyaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sftctl.config.sources import json, toml, yaml
from sftctl.config.sources.items import Item, Unreadable, plain

keys = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"], exclude_characters="\u2028\u2029\x85"), max_size=5
)
scalars = st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | keys
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=12
)
tables = st.dictionaries(keys, values, max_size=4)


def walk(item: Item, value: Any) -> Iterator[tuple[Item, Any]]:
    """Every scalar with its value, and every item once."""
    yield item, value
    if isinstance(value, dict):
        for key, each in value.items():
            yield from walk(item.value[key], each)
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from walk(item.value[index], each)


def marked(item: Item) -> str:
    """The text that an origin marks."""
    origin = item.origin
    assert origin.text is not None
    return origin.text[origin.column - 1 : origin.end_column - 1]


@settings(max_examples=100, deadline=None)
@given(data=tables, multiline=st.booleans())
def test_toml_positions_read_back(data: dict[str, Any], multiline: bool) -> None:
    """For what tomllib reads, the scanner finds the same tree, and the text at each scalar is that scalar."""
    text = tomli_w.dumps(data, multiline_strings=multiline)
    root = toml.read(text, "x.toml")
    assert plain(root) == tomllib.loads(text)
    for item, value in walk(root, data):
        if not isinstance(value, (dict, list)) and '"""' not in item.origin.text:
            assert tomllib.loads(f"v={marked(item)}")["v"] == value


@settings(max_examples=100, deadline=None)
@given(data=tables, indent=st.sampled_from([None, 1, 4]))
def test_json_positions_read_back(data: dict[str, Any], indent: int | None) -> None:
    text = std_json.dumps(data, indent=indent, ensure_ascii=False)
    root = json.read(text, "x.json")
    assert plain(root) == data
    for item, value in walk(root, data):
        if not isinstance(value, (dict, list)):
            assert std_json.loads(marked(item)) == value


@settings(max_examples=100, deadline=None)
@given(data=tables, flow=st.sampled_from([None, True, False]))
def test_yaml_positions_read_back(data: dict[str, Any], flow: bool | None) -> None:
    from sftctl.config.yaml_text import Dumper

    text = pyyaml.dump(data, Dumper=Dumper, default_flow_style=flow, allow_unicode=True, width=10_000)
    root = yaml.read(text, "x.yaml")
    assert plain(root) == data
    for item, value in walk(root, data):
        if not isinstance(value, (dict, list)):
            assert plain(yaml.read(marked(item), "part.yaml")) == value


def test_positions_of_a_file_by_hand() -> None:
    text = """\
# a comment with [brackets] = "quotes"
model.name_or_path = "x"     # dotted
[optim]
betas = [ 0.9,               # a list over lines
  0.95 ]
"learning_rate" = 1e-5
[[data.datasets]]
path = 'a#b'
columns = {question = "q", "a.b" = "c"}
[[data.datasets]]
path = "b"
[data.datasets.columns]
answer = "a"
"""
    root = toml.read(text, "x.toml")
    found = {}

    def collect(item: Item, path: tuple[Any, ...]) -> None:
        key = item.key or item.origin
        found[path] = ((key.line, key.column), (item.origin.line, item.origin.column))
        inner = (
            item.value.items()
            if isinstance(item.value, dict)
            else enumerate(item.value)
            if isinstance(item.value, list)
            else ()
        )
        for name, each in inner:
            collect(each, (*path, name))

    collect(root, ())
    assert found["model", "name_or_path"] == ((2, 7), (2, 22))
    assert found["optim",] == ((3, 2), (3, 1))
    assert found["optim", "betas"] == ((4, 1), (4, 9))
    assert found["optim", "betas", 1] == ((5, 3), (5, 3))
    assert found["optim", "learning_rate"] == ((6, 1), (6, 19))
    assert found["data", "datasets", 0] == ((7, 8), (7, 1))
    assert found["data", "datasets", 0, "columns", "a.b"] == ((9, 28), (9, 36))
    assert found["data", "datasets", 1] == ((10, 8), (10, 1))
    assert found["data", "datasets", 1, "columns", "answer"] == ((13, 1), (13, 10))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("5e5", 5e5),
        ("2.", 2.0),
        (".5", 0.5),
        ("no", "no"),
        ("on", "on"),
        ("y", "y"),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("~", None),
        ("Null", None),
        ("true", True),
        ("FALSE", False),
        ("2026-01-01", "2026-01-01"),
        ("+3", 3),
        ("-.inf", float("-inf")),
        ('"5"', "5"),
        ("'null'", "null"),
        ("=", "="),
    ],
)
def test_yaml_scalars_are_those_of_1_2(text: str, value: Any) -> None:
    found = plain(yaml.read(f"a: {text}", "x.yaml"))["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("reader", [toml.read, yaml.read])
def test_line_ends_do_not_move_positions(reader: Any, newline: str) -> None:
    text = newline.join(["a = 1", 'b = "x"'] if reader is toml.read else ["a: 1", 'b: "x"'])
    item = reader(text, "x").value["b"]
    assert (item.origin.line, item.origin.text.rstrip("\r")) == (2, text.split(newline)[1])
    assert marked(item) == '"x"'


def test_an_anchor_is_read_where_it_is_used() -> None:
    root = yaml.read("a: &x [1, 2]\nb: *x", "x.yaml")
    assert plain(root) == {"a": [1, 2], "b": [1, 2]}


def test_a_file_of_anchors_that_grows_without_end_is_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(Unreadable) as error:
        yaml.read("\n".join(lines), "x.yaml")
    assert "anchors" in error.value.problems[0].message
