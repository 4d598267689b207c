"""The schema as JSON Schema 2020-12, for editors: completion, help and marks while a file is written.

It accepts what the strict converter accepts, as far as types, choices and bounds go; rules across leaves are
beyond it. TOML has no null: a leaf that accepts none accepts the text "none" too.
"""

from __future__ import annotations

import json
from typing import Any, get_args, get_origin

import attrs

from sftctl.config.leaves import Group, Leaf, groups, read_class, strip_none
from sftctl.config.limits import Limit
from sftctl.config.show import plain_value

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """The whole schema, registered groups among them."""
    texts = {"type": "array", "items": {"type": "string", "minLength": 1}}
    root: dict[str, Any] = {
        "extends": {
            "description": "Files to lay this one over; relative to this file.",
            "anyOf": [texts, {"type": "string", "minLength": 1}],
        },
        "plugins": {
            "description": "Modules that register groups.",
            "anyOf": [texts, {"type": "string", "minLength": 1}],
        },
    }
    for group in groups().values():
        root[group.name] = _group(group)
    return {
        "$schema": DIALECT,
        "title": "sftctl",
        "description": "Configuration of a supervised fine-tuning run.",
        "type": "object",
        "additionalProperties": False,
        "properties": root,
    }


def dump() -> str:
    """The schema as text."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def _group(group: Group) -> dict[str, Any]:
    if group.free:
        values = {"type": "string"}
        return {"description": group.help, "type": "object", "additionalProperties": values}
    return {
        "description": group.help,
        "type": "object",
        "additionalProperties": False,
        "properties": {leaf.name: _leaf(leaf) for leaf in group.leaves},
    }


def _leaf(leaf: Leaf) -> dict[str, Any]:
    unit = f" In {leaf.unit}." if leaf.unit else ""
    described: dict[str, Any] = {"description": f"{leaf.help}{unit}"}
    if not leaf.required:
        described["default"] = plain_value(leaf.default, leaf.path)
    of_type = _type(leaf.base, leaf.limit, leaf.not_empty)
    if leaf.optional:
        return {**described, "anyOf": [of_type, {"enum": [None, "none"]}]}
    return {**described, **of_type}


def _type(annotation: Any, limit: Limit | None = None, not_empty: bool = False) -> dict[str, Any]:
    base, _ = strip_none(annotation)
    arguments = get_args(base)
    if attrs.has(base):
        fields = list(read_class(base, base.__name__))
        return {
            "type": "object",
            "additionalProperties": False,
            "required": [leaf.name for leaf in fields if leaf.required],
            "properties": {leaf.name: _leaf(leaf) for leaf in fields},
        }
    if base is bool:
        return {"type": "boolean"}
    if base in (int, float):
        return {"type": "integer" if base is int else "number", **_bounds(limit)}
    if base is str:
        return {"type": "string", "minLength": 1} if not_empty else {"type": "string"}
    if get_origin(base) is tuple:
        items = {"type": "array", "items": _type(arguments[0], limit, not_empty)}
        exact = Ellipsis not in arguments
        return {**items, "minItems": len(arguments), "maxItems": len(arguments)} if exact else items
    if arguments and not isinstance(get_origin(base), type):  # a Literal
        return {"enum": list(arguments)}
    return {"type": "object", "additionalProperties": {"type": "string"}} if arguments[1] is str else {"type": "object"}


def _bounds(limit: Limit | None) -> dict[str, Any]:
    if limit is None:
        return {}
    low = {"exclusiveMinimum" if limit.open_low else "minimum": limit.low}
    high = {"exclusiveMaximum" if limit.open_high else "maximum": limit.high}
    return {key: value for key, value in {**low, **high}.items() if value is not None}
