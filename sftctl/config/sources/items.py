"""What every source is read into: values that know where they stand.

A file becomes a `Document`, a tree of Items. The environment, the command line and a Python caller become a
`Layer` straight away; a document becomes one when `shape` lays it against the schema. A Layer is a list of
edits to leaves, in the order they were written. These are named tuples: a class of attrs takes five times as long
to make, and they are made at every start.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from sftctl.errors import Origin, OriginKind, Problem

Path = tuple[str | int, ...]
"""Keys and indices from the root: ("data", "datasets", 1, "path")."""


class Text(str):
    """A text of the environment or the command line: it is read by the leaf's type, unlike a string of a file."""

    __slots__ = ()


class NoneWord(str):
    """The text `none` in TOML, which has no null: None for leaves that accept None."""

    __slots__ = ()


class Item(NamedTuple):
    """A value: a scalar, `dict[str, Item]` or `list[Item]`; where it stands, and where its key does."""

    value: Any
    origin: Origin
    key: Origin | None = None


class Edit(NamedTuple):
    """What a source does to one leaf (`path`), or to an entry of its table (`path` and `inner` keys)."""

    action: Literal["set", "append", "reset"]
    path: str
    item: Item
    inner: tuple[str, ...] = ()


class Layer(NamedTuple):
    """A source, laid against the schema."""

    edits: tuple[Edit, ...]
    problems: tuple[Problem, ...] = ()


class Document(NamedTuple):
    """A file as it was read: its name as the user knows it, the folder its paths start from, its root table."""

    name: str
    folder: str
    root: Item
    format: Literal["toml", "yaml", "json"]


class Unreadable(Exception):
    """A source that could not be read; carries Problems. Caught where sources are collected."""

    def __init__(self, *problems: Problem) -> None:
        self.problems = problems
        super().__init__(*problems)


class Lines:
    """The lines of a text, to turn offsets into Origins."""

    def __init__(self, text: str, name: str, kind: OriginKind = "file") -> None:
        self.name = name
        self.kind: OriginKind = kind
        self._text = text
        self._starts = [0]
        position = text.find("\n")
        while position >= 0:
            self._starts.append(position + 1)
            position = text.find("\n", position + 1)

    def line(self, number: int) -> str:
        """Line `number`, counted from 1, without its end."""
        start = self._starts[number - 1]
        end = self._starts[number] - 1 if number < len(self._starts) else len(self._text)
        return self._text[start:end].rstrip("\r")

    def __len__(self) -> int:
        return len(self._starts)

    def origin(self, start: int, end: int) -> Origin:
        """The place `[start, end)`; what spans lines is marked to the end of its first."""
        number = bisect.bisect_right(self._starts, start)
        column = start - self._starts[number - 1] + 1
        return self.at(number, column, column + max(1, end - start))

    def at(self, number: int, column: int, end_column: int | None = None) -> Origin:
        """The place at a line and column, counted from 1."""
        number = min(max(1, number), len(self))
        text = self.line(number)
        column = min(column, len(text) + 1)
        end = min(end_column or column + 1, len(text) + 1)
        return Origin(self.kind, self.name, number, column, max(end, column + 1), text)


def plain(item: Item) -> Any:
    """The value without its origins: what cattrs structures."""
    if isinstance(item.value, dict):
        return {key: plain(each) for key, each in item.value.items()}
    if isinstance(item.value, list):
        return [plain(each) for each in item.value]
    return item.value


def origin_at(item: Item, path: Sequence[str | int], *, key: bool = False) -> Origin:
    """The origin of what stands at `path` inside `item`; of the nearest thing around it where there is none.

    With `key`, the origin of its key.
    """
    for step in path:
        inner = item.value
        found = isinstance(inner, (dict, list)) and (
            (isinstance(step, str) and isinstance(inner, dict) and step in inner)
            or (isinstance(step, int) and isinstance(inner, list) and step < len(inner))
        )
        if not found:
            return item.origin
        item = inner[step]
    return item.key if key and item.key is not None else item.origin


def wrap(value: Any, origin: Origin) -> Item:
    """A Python value as an Item, everything in it at one origin."""
    if isinstance(value, Mapping):
        return Item({key: wrap(each, origin) for key, each in value.items()}, origin, origin)
    if isinstance(value, (list, tuple)):
        return Item([wrap(each, origin) for each in value], origin, origin)
    return Item(value, origin, origin)


def show_path(path: Sequence[str | int]) -> str:
    """("data", "datasets", 1, "path") -> data.datasets[1].path; a key that is no bare word is quoted."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
            continue
        word = step if step and step.replace("_", "").replace("-", "").isalnum() else f'"{step}"'
        text += f".{word}" if text else word
    return text
