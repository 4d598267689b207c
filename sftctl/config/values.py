"""A value as text: on one line, the way TOML writes it. For screens, hints and comments."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import attrs


def show_value(value: Any) -> str:
    """`none`, `true`, `2e-05`, `"text"`, `["a", "b"]`, `{hidden_size = 64}`."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(show_value(each) for each in value) + "]"
    if attrs.has(type(value)):
        value = entry(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{show_key(key)} = {show_value(each)}" for key, each in value.items()) + "}"
    return quoted(str(value))


def quoted(text: str) -> str:
    """A text in double quotes as TOML and YAML both read it; what no screen shows as `\\u0085`, `\\U0010ffff`."""
    plain = json.dumps(text, ensure_ascii=False)
    if plain.isprintable():
        return plain
    escape = (f"\\u{ord(each):04x}" if ord(each) < 0x10000 else f"\\U{ord(each):08x}" for each in plain)
    return "".join(each if each.isprintable() else code for each, code in zip(plain, escape, strict=True))


def show_key(key: str) -> str:
    """A key of TOML: bare where it may be."""
    bare = key and key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if bare else quoted(key)


def entry(value: Any) -> dict[str, Any]:
    """An entry (`Dataset`) as what someone would write: what differs from its defaults."""
    return {
        field.name: getattr(value, field.name)
        for field in attrs.fields(type(value))
        if getattr(value, field.name) != field.default
    }
