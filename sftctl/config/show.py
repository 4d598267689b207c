"""A resolved bundle as data and as text: a table's rows, or TOML, YAML, JSON that load back equal.

Secrets are masked in all of them. Files hold paths absolute, so that they mean the same wherever they lie; a
table shows those below the working directory as relative ones, for people.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import attrs

from sftctl.config import paths, registry, rules, secrets
from sftctl.config.leaves import ENV, Leaf, entry_leaves, find, groups
from sftctl.config.resolve import Node, Resolved, default_of, value_of
from sftctl.config.schema import Bundle
from sftctl.config.table import thaw
from sftctl.config.values import entry, show_value

Format = Literal["toml", "yaml", "json"]
FORMATS: tuple[Format, ...] = ("toml", "yaml", "json")


@attrs.frozen
class Row:
    """A line of the table: path, value as text, origin as text, and what it shadows as (value, origin)."""

    path: str
    value: str
    origin: str
    shadowed: tuple[tuple[str, str], ...]
    changed: bool


def rows(resolved: Resolved, *, changed: bool = False) -> tuple[Row, ...]:
    """Every leaf in the order of the schema, or only those that differ from the default."""
    found = []
    for node in resolved.nodes.values():
        differs = is_changed(node)
        if changed and not differs:
            continue
        shadowed = tuple((show(each.value, node.path), str(each.origin)) for each in node.shadowed)
        found.append(Row(node.path, show(node.value, node.path), str(node.origin), shadowed, differs))
    return tuple(found)


def is_changed(node: Node) -> bool:
    """Whether a leaf's value differs from its default. A variable of `env` always does."""
    leaf = find(node.path)
    return leaf is None or node.value != default_of(leaf)


def show(value: Any, path: str) -> str:
    """A value on one line, for people: secrets masked, paths below the working directory relative."""
    leaf = find(path)
    value = secrets.mask(value, tuple(path.split(".", 1)))
    if leaf is not None and leaf.is_path and isinstance(value, str):
        value = shorten(value, leaf)
    if leaf is not None and leaf.is_entries:
        path_leaf = entry_leaves(leaf)["path"]
        value = [{**entry(each), "path": shorten(each.path, path_leaf)} for each in value]
    return show_value(value)


def shorten(value: str, leaf: Leaf) -> str:
    """A path for people; one that could be taken for a Hub id begins with `./`."""
    short = paths.shorten(value)
    return f"./{short}" if leaf.may_be_hub_id and short != value and not paths.must_be_local(short) else short


def dump(resolved: Resolved | Bundle, format: Format, *, changed: bool = False) -> str:
    """The bundle as a file that loads back equal; with `changed`, only what differs from the defaults.

    TOML leaves out what is none, where none is the default, and writes "none" where it is not; JSON and YAML
    hold every leaf. Groups of plug-ins name their module.
    """
    bundle = resolved.bundle if isinstance(resolved, Resolved) else resolved
    data = tree(bundle, changed=changed)
    if format == "json":
        return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if format == "yaml":
        return _yaml(data)
    return _toml(data)


def tree(bundle: Bundle, *, changed: bool = False) -> dict[str, Any]:
    """The bundle as plain data: groups of leaves, secrets masked, plug-ins named."""
    modules = (registry.plugin_of(name) for name in bundle.extensions)
    plugins = sorted({module for module in modules if module is not None})
    data: dict[str, Any] = {"plugins": plugins} if plugins else {}
    only = changed_paths(bundle) if changed else None
    for group in groups().values():
        if group.name not in bundle.extensions and not group.built_in:
            continue
        leaves = dict(_group(bundle, group.name, only))
        if leaves or (not changed and not group.free):
            data[group.name] = leaves
    return data


def flat(bundle: Bundle) -> dict[str, Any]:
    """Every leaf by its path, as plain data, secrets masked: for trackers and `origins.json`."""
    return {
        f"{group}.{name}": value
        for group, table in tree(bundle).items()
        if group != "plugins"
        for name, value in table.items()
    }


def origins(resolved: Resolved) -> dict[str, Any]:
    """What `origins.json` holds: for each leaf value, origin, and what it shadowed."""
    return {
        node.path: {
            "value": plain_value(node.value, node.path),
            "origin": _origin(node.origin),
            "shadowed": [
                {"value": plain_value(each.value, node.path), "origin": _origin(each.origin)} for each in node.shadowed
            ],
        }
        for node in resolved.nodes.values()
    }


def digest(bundle: Bundle) -> str:
    """16 hex digits of a bundle: equal bundles have equal ones. Secrets do not count."""
    import hashlib

    text = json.dumps(_unmasked(flat(bundle)), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _unmasked(value: Any) -> Any:
    """The data without what is masked in it."""
    if isinstance(value, dict):
        return {key: _unmasked(each) for key, each in value.items() if each != secrets.MASK}
    return [_unmasked(each) for each in value] if isinstance(value, list) else value


def plain_value(value: Any, path: str) -> Any:
    """A leaf's value as lists and dicts, secrets masked."""
    return secrets.mask(_plain(value), tuple(path.split(".", 1)))


def changed_paths(bundle: Bundle) -> frozenset[str]:
    """The leaves that a file must say to load as this bundle: those that differ, and switches that idle ones need."""
    differ = frozenset(
        leaf.path
        for group in groups().values()
        if group.built_in or group.name in bundle.extensions
        for leaf in group.leaves
        if value_of(bundle, leaf) not in (leaf.default, default_of(leaf))
    )
    return differ | rules.idle_switches(bundle, differ)


def _group(bundle: Bundle, name: str, only: frozenset[str] | None) -> Iterator[tuple[str, Any]]:
    if name == ENV:
        for key, value in bundle.env.items():
            yield key, plain_value(value, f"{ENV}.{key}")
        return
    for leaf in groups()[name].leaves:
        if only is None or leaf.path in only:
            yield leaf.name, plain_value(value_of(bundle, leaf), leaf.path)


def _plain(value: Any) -> Any:
    if attrs.has(type(value)):
        return {key: _plain(each) for key, each in entry(value).items()}
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return thaw(value)


def _origin(origin: Any) -> dict[str, Any]:
    said = {"kind": origin.kind, "name": origin.name, "line": origin.line, "column": origin.column}
    return {key: value for key, value in said.items() if value not in (None, "")}


def _toml(data: dict[str, Any]) -> str:
    import tomli_w  # 3 ms, for who writes

    return tomli_w.dumps(_without_none(data, ()))


def _without_none(value: Any, path: tuple[str, ...]) -> Any:
    """TOML has no null: a leaf whose default is none is left out, any other none is the text "none"."""
    if isinstance(value, dict):
        kept = {key: each for key, each in value.items() if each is not None or not _defaults_to_none((*path, key))}
        return {key: _without_none(each, (*path, key)) for key, each in kept.items()}
    if isinstance(value, list):
        return [_without_none(each, (*path, "[]")) for each in value]
    return "none" if value is None else value


def _defaults_to_none(path: tuple[str, ...]) -> bool:
    leaf = find(".".join(path)) if len(path) == 2 else None
    return leaf is not None and leaf.default is None


def _yaml(data: dict[str, Any]) -> str:
    import yaml  # 8 ms, for who writes YAML

    from sftctl.config.yaml_text import Dumper

    text: str = yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text
