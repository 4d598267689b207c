"""Lays a source against the schema: which leaf each value is for, and what is for none.

Groups and keys are checked here, source by source, so that a stray key is reported where it stands even when
a later source would have shadowed it. Values are left alone, but for paths, which are relative to who said them.
"""

from __future__ import annotations

from collections.abc import Sequence

from sftctl.config import paths
from sftctl.config.leaves import ENV, Leaf, entry_leaves, find, groups
from sftctl.config.sources.items import Document, Edit, Item, Layer, NoneWord, Text, show_path
from sftctl.errors import Origin, Problem

ROOT_KEYS = ("extends", "plugins")
"""What a file says about files and plug-ins, beside its groups."""


def lay(document: Document) -> Layer:
    """The edits of a file, in its order, and a problem for each group and key that is unknown."""
    edits: list[Edit] = []
    problems: list[Problem] = []
    for name, item in document.root.value.items():
        if name in ROOT_KEYS:
            continue
        where = item.key or item.origin
        if name not in groups():
            problems.append(_unknown_group(name, item, where))
        elif not isinstance(item.value, dict):
            problems.append(group_is_no_table(name, item))
        else:
            for key, value in item.value.items():
                path = f"{name}.{key}"
                if name == ENV:
                    edits.append(Edit("set", path, value))
                elif (leaf := find(path)) is not None:
                    edits.append(Edit("set", path, localise(value, leaf, document.folder)))
                else:
                    problems.append(unknown_key(name, key, value.key or value.origin))
    return Layer(tuple(edits), tuple(problems))


def localise(item: Item, leaf: Leaf, folder: str) -> Item:
    """The same item, its paths resolved against `folder`: a leaf's own, or those inside its entries."""
    if leaf.is_entries and isinstance(item.value, list):
        return item._replace(value=[_localise_entry(each, leaf, folder) for each in item.value])
    value = item.value
    if not leaf.is_path or not isinstance(value, str) or (leaf.optional and is_none_word(value)):
        return item
    return item._replace(value=type(value)(paths.resolve(value, leaf, folder)))


def is_none_word(value: object) -> bool:
    """Whether a text is the `none` that means None: in TOML, in the environment and in options."""
    return isinstance(value, (Text, NoneWord)) and value == "none"


def target(parts: Sequence[str]) -> tuple[Leaf | None, str, tuple[str, ...]] | None:
    """What a dotted path is for: its leaf (None for `env.NAME`), that leaf's path, and keys inside its table.

    ("model", "architecture", "hidden_size") -> (leaf, "model.architecture", ("hidden_size",)); None: nothing.
    """
    if len(parts) == 2 and parts[0] == ENV and parts[1]:
        return None, f"{ENV}.{parts[1]}", ()
    leaf = find(".".join(parts[:2])) if len(parts) >= 2 and parts[0] in groups() else None
    if leaf is None or (len(parts) > 2 and not leaf.is_table):
        return None
    return leaf, leaf.path, tuple(parts[2:])


def unknown_key(group: str, key: str, origin: Origin) -> Problem:
    from sftctl.config import suggest  # only on the way to an error

    return Problem(show_path((group, key)), "unknown key", origin, suggest.for_key(group, key))


def group_is_no_table(name: str, item: Item) -> Problem:
    """`optim = 3`, or YAML's `optim:` with nothing below."""
    from sftctl.config.convert import describe

    first = groups()[name].leaves[0].name if groups()[name].leaves else "NAME"
    if item.value is None:
        return Problem(
            name, "is a group, and has nothing in it", item.key or item.origin, "remove it, or set a key in it"
        )
    advice = f"set a key in it, such as {name}.{first}"
    return Problem(name, f"is a group of settings, got {describe(item.value, (name,))}", item.origin, advice)


def _unknown_group(name: str, item: Item, where: Origin) -> Problem:
    from sftctl.config import suggest

    what = "unknown group" if isinstance(item.value, dict) else "unknown key"
    return Problem(show_path((name,)), what, where, suggest.for_key(None, name))


def _localise_entry(item: Item, leaf: Leaf, folder: str) -> Item:
    if not isinstance(item.value, dict):
        return item
    known = entry_leaves(leaf)
    value = {key: localise(each, known[key], folder) if key in known else each for key, each in item.value.items()}
    return item._replace(value=value)
