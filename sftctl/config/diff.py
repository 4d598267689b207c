"""What differs between two configurations: typed, leaf by leaf, with the origin of both sides.

    sftctl config diff runs/a runs/b
    optim.learning_rate   2e-05  ->  0.0001

Values are compared as they resolve, so that 1e-4 and 0.0001 are equal, and a key that says the default is no
difference. Arrays of tables are compared entry by entry.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from sftctl.config import registry, sides
from sftctl.config.leaves import Leaf, find
from sftctl.config.resolve import Node, Resolved
from sftctl.config.show import plain_value, show
from sftctl.config.values import show_value
from sftctl.errors import ConfigError, Origin


@attrs.frozen
class Change:
    """A leaf that differs. A side that does not have it (a variable of `env`) holds None and no origin."""

    path: str
    before: Any
    after: Any
    before_origin: Origin | None
    after_origin: Origin | None


def compare(a: str, b: str) -> tuple[Change, ...]:
    """The changes from side `a` to side `b`: files, recipes, run directories, `defaults`.

    Raises ConfigError with the problems of both sides.
    """
    before = registry.version()
    first, second = _read(a, b)
    if registry.version() != before:  # a plug-in of one side gives its groups to the other too
        first, second = _read(a, b)
    return tuple(changes(first, second))


def _read(*names: str) -> list[Resolved]:
    read, problems = [], []
    for name in names:
        try:
            read.append(sides.read(name))
        except ConfigError as error:
            problems += [each for each in error.problems if each not in problems]
    if problems:
        raise ConfigError(*problems)
    return read


def changes(a: Resolved, b: Resolved) -> Iterator[Change]:
    """The leaves whose values differ, in the order of the schema."""
    for path in dict.fromkeys((*a.nodes, *b.nodes)):
        before, after = a.nodes.get(path), b.nodes.get(path)
        if before is not None and after is not None and before.value == after.value:
            continue
        leaf = find(path)
        if leaf is not None and leaf.is_entries and before and after and len(before.value) == len(after.value):
            yield from _entries(leaf, a, b)
        else:
            yield Change(path, _value(before), _value(after), _origin(before), _origin(after))


def _entries(leaf: Leaf, a: Resolved, b: Resolved) -> Iterator[Change]:
    """The fields that differ between two arrays of as many entries."""
    pairs = zip(a.nodes[leaf.path].value, b.nodes[leaf.path].value, strict=True)
    for index, (before, after) in enumerate(pairs):
        for field in attrs.fields(leaf.element):
            values = getattr(before, field.name), getattr(after, field.name)
            if values[0] != values[1]:
                origins = (side.facts.origin(leaf.path, index, field.name) for side in (a, b))
                yield Change(f"{leaf.path}[{index}].{field.name}", *values, *origins)


def table(found: tuple[Change, ...]) -> list[tuple[str, str, str, str, str]]:
    """Rows of (path, before, after, origin before, origin after), for screens. Secrets are masked."""
    return [
        (
            change.path,
            _shown(change.before, change.before_origin, change.path),
            _shown(change.after, change.after_origin, change.path),
            str(change.before_origin or "absent"),
            str(change.after_origin or "absent"),
        )
        for change in found
    ]


def to_json(found: tuple[Change, ...]) -> str:
    """A list of changes as JSON: path, before, after, and both origins."""
    data = [
        {
            "path": change.path,
            "before": plain_value(change.before, change.path),
            "after": plain_value(change.after, change.path),
            "before_origin": None if change.before_origin is None else str(change.before_origin),
            "after_origin": None if change.after_origin is None else str(change.after_origin),
        }
        for change in found
    ]
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def to_patch(found: tuple[Change, ...], a: str, b: str) -> str:
    """The changes as a patch: `-` what side a says, `+` what side b says, by group, in TOML."""
    if not found:
        return ""
    lines = [f"--- {a}", f"+++ {b}"]
    group = None
    for change in found:
        if change.path.partition(".")[0] != group:
            group = change.path.partition(".")[0]
            lines.append(f" [{group}]")
        name = change.path.partition(".")[2]
        pair = (("-", change.before, change.before_origin), ("+", change.after, change.after_origin))
        for sign, value, origin in pair:
            if origin is not None:
                lines += [f"{sign}{line}" for line in _toml(name, plain_value(value, change.path))]
    return "\n".join(lines) + "\n"


def _toml(name: str, value: Any) -> list[str]:
    """One leaf in TOML; entries of an array of tables a line each."""
    if isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        return [f"{name} = [", *(f"    {show_value(each)}," for each in value), "]"]
    return [f"{name} = {show_value('none' if value is None else value)}"]


def _value(node: Node | None) -> Any:
    return None if node is None else node.value


def _origin(node: Node | None) -> Origin | None:
    return None if node is None else node.origin


def _shown(value: Any, origin: Origin | None, path: str) -> str:
    return "absent" if origin is None else show(value, path)
