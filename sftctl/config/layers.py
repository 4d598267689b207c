"""Layers merged in priority order; for each leaf, everything that was said about it.

A leaf is replaced whole: a list or table of a later source does not mix with an earlier one's. `+=` and
`--set table.key=...` are how to add. `env` is a group, so its names are leaves of their own.

    base.toml  learning_rate = 1e-5
    run.toml   learning_rate = 2e-5      ->  Saying(1e-5), Saying(2e-5): the last one counts,
    option     --learning-rate 3e-5          Saying(3e-5)                 the others are shadowed
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from sftctl.config import secrets
from sftctl.config.leaves import ENV, find
from sftctl.config.sources.items import Edit, Item, Layer, wrap
from sftctl.errors import Origin, Problem

DEFAULT = Origin("default")


class Saying(NamedTuple):
    """One value that was said for a leaf; `item` is None for a reset to the default.

    `rank` is the number of its layer: a higher one was said with more priority.
    """

    item: Item | None
    origin: Origin
    rank: int


Sayings = Mapping[str, tuple[Saying, ...]]
"""By the leaf's path, lowest priority first."""


def merge(layers: Iterable[Layer]) -> tuple[dict[str, tuple[Saying, ...]], list[Problem]]:
    """What was said of each leaf, in priority order, and the problems of all layers in theirs."""
    said: dict[str, list[Saying]] = {}
    problems: list[Problem] = []
    for rank, layer in enumerate(layers):
        problems.extend(layer.problems)
        for edit in layer.edits:
            if not _is_masked(edit):
                said.setdefault(edit.path, []).append(_apply(edit, said.get(edit.path, []), rank))
    return {path: tuple(sayings) for path, sayings in said.items()}, problems


def tree(sayings: Sayings) -> Item:
    """The root table of what counts: the last saying of every leaf."""
    root: dict[str, Item] = {}
    for path, said in sayings.items():
        item = said[-1].item
        if item is None:
            continue
        group, _, name = path.partition(".")
        table = root.setdefault(group, Item({}, item.origin))
        table.value[name] = item
    return Item(root, DEFAULT)


def _apply(edit: Edit, before: list[Saying], rank: int) -> Saying:
    origin = edit.item.origin
    current = before[-1].item if before else None
    if edit.action == "reset":
        return Saying(None, origin, rank)
    item = _without_masks(edit.item, tuple(edit.path.split(".", 1)))
    if edit.action == "append":
        base = _default(edit.path) if current is None else current
        kept = base.value if isinstance(base.value, list) else []
        return Saying(Item([*kept, *item.value], origin, edit.item.key), origin, rank)
    if edit.inner:
        base = Item({}, origin) if current is None else current
        return Saying(_put(base, edit.inner, item), origin, rank)
    return Saying(item, origin, rank)


def _put(table: Item, keys: tuple[str, ...], item: Item) -> Item:
    """`table` with `item` at `keys`, the rest as it was; the whole now stands where `item` does."""
    inside = dict(table.value) if isinstance(table.value, dict) else {}
    first, rest = keys[0], keys[1:]
    inside[first] = _put(inside.get(first, Item({}, item.origin)), rest, item) if rest else item
    return Item(inside, item.origin, item.key)


def _default(path: str) -> Item:
    leaf = find(path)
    assert leaf is not None
    return wrap(leaf.default, DEFAULT)


def _is_masked(edit: Edit) -> bool:
    """A `****` where a secret was: a saved configuration, read again, says nothing about it."""
    path = (*edit.path.split(".", 1), *edit.inner)
    return edit.item.value == secrets.MASK and secrets.is_secret(path)


def _without_masks(item: Item, path: tuple[Any, ...]) -> Item:
    if path[0] == ENV or not isinstance(item.value, dict):
        return item
    kept = {
        key: _without_masks(each, (*path, key))
        for key, each in item.value.items()
        if not (each.value == secrets.MASK and secrets.is_secret((*path, key)))
    }
    return Item(kept, item.origin, item.key)
