"""From a failure of the converter to a Problem: its words, its place, and a hint that knows its source.

The same text `no` for a flag is YAML 1.1's false where it stands unquoted in YAML, a quoted word in TOML,
and a slip in an option; each is told something else. Imported on the way to an error, never before.
"""

from __future__ import annotations

import re
from typing import Any

from cattrs.errors import ForbiddenExtraKeysError

from sftctl.config import secrets, suggest
from sftctl.config.convert import Mismatch, Refused, describe
from sftctl.config.leaves import Leaf, entry_leaves, find, show_choice
from sftctl.config.nearest import nearest
from sftctl.config.sources.items import Item, Text, origin_at, show_path
from sftctl.errors import Origin, Problem

Step = str | int

_NUMBER = re.compile(r"[-+]?(\d[\d_,]*(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
_YES = ("true", "yes", "on", "y", "1")
_NO = ("false", "no", "off", "n", "0")


def problem(path: tuple[Step, ...], failure: BaseException, root: Item) -> Problem:
    """The Problem of one failure. `path` leads from `root` to what failed."""
    shown = show_path(path)
    leaf = find(shown) or _owner(path)
    if isinstance(failure, ForbiddenExtraKeysError):
        return _unknown_field(path, root)
    origin = origin_at(root, path)
    if isinstance(failure, KeyError):
        example = leaf.name if leaf else str(path[-1])
        return Problem(shown, "is missing", origin, f"an entry needs {example}")
    if isinstance(failure, Mismatch):
        if failure.choices:
            return _no_choice(shown, failure, origin, path)
        message = f"expected {failure.expected}, got {describe(failure.value, path)}"
        return Problem(shown, message, origin, _help(failure, leaf, origin, path))
    help = _refused_help(failure, leaf, origin)
    return Problem(shown, str(failure), origin, help)


def _refused_help(failure: BaseException, leaf: Leaf | None, origin: Origin) -> str | None:
    if isinstance(failure, Refused) and "'none'" in str(failure):
        return "write null for no value, or another word"
    if leaf is not None and leaf.limit is not None and "must be >" in str(failure) and leaf.optional:
        return f"for no value, {_none(origin)}"
    return None


def _no_choice(shown: str, failure: Mismatch, origin: Origin, path: tuple[Step, ...]) -> Problem:
    message = f"expected {failure.expected}, got {describe(failure.value, path)}"
    word = failure.value
    if isinstance(word, str) and any(show_choice(each) == word for each in failure.choices):
        return Problem(shown, message, origin, f"drop the quotes: {word}")
    near = suggest.for_choice(word, failure.choices)
    if near is None and isinstance(word, str) and word.lower() in _NO + _YES and True in failure.choices:
        near = f"write {'true' if word.lower() in _YES else 'false'}"
    if near is None and not isinstance(word, str) and word is not None:
        near = "put quotes around it" if any(show_choice(each) == str(word) for each in failure.choices) else None
    return Problem(shown, message, origin, near)


def _help(failure: Mismatch, leaf: Leaf | None, origin: Origin, path: tuple[Step, ...]) -> str | None:
    value = failure.value
    if secrets.is_secret(path):
        return "put quotes around it" if not isinstance(value, str) else None
    if value is None:
        return _null_help(leaf, origin)
    if type(value).__module__ == "datetime":
        return "put quotes around it"
    if isinstance(value, Text) and leaf is not None and leaf.optional and value.lower() in ("null", "nil", "none", "~"):
        return "write none for no value"
    if failure.expected == "true or false":
        return _flag_help(value, origin)
    if failure.expected in ("a number", "a whole number"):
        return _number_help(value, failure.expected, leaf, origin)
    if failure.expected == "text" and isinstance(value, (bool, int, float)):
        return f'put quotes around it: "{show_choice(value)}"'
    if failure.expected.startswith("a list"):
        return _list_help(value, leaf, origin)
    if failure.expected == "a table":
        return _table_help(leaf, path)
    return None


def _null_help(leaf: Leaf | None, origin: Origin) -> str:
    if leaf is None or leaf.required:
        return "give it a value"
    from sftctl.config.values import show_value

    return f"remove the key to get the default, {show_value(leaf.default)}"


def _flag_help(value: Any, origin: Origin) -> str:
    if isinstance(value, int):
        return f"write {'true' if value else 'false'}"
    word = value.lower() if isinstance(value, str) else ""
    if word not in _YES + _NO:
        return "write true or false"
    right = "true" if word in _YES else "false"
    if isinstance(value, Text):
        return f"write {right}"
    if word in ("true", "false"):
        return f"drop the quotes: {right}"
    if _is_yaml(origin) and not _is_quoted(origin):
        return f"YAML 1.2 reads an unquoted {value} as text; write {right}"
    return f"write {right}, without quotes"


def _number_help(value: Any, expected: str, leaf: Leaf | None, origin: Origin) -> str | None:
    if isinstance(value, float) and expected == "a whole number":
        return None
    if not isinstance(value, str):
        return None
    if _NUMBER.fullmatch(value.strip()):
        plain = value.strip().replace(",", "").replace("_", "")
        if isinstance(value, Text) and "," in value and leaf is not None and leaf.is_tuple:
            option = leaf.options[1]
            numbers = value.split(",")
            return f"repeat the option: {' '.join(f'{option} {each.strip()}' for each in numbers)}"
        return f"write {plain}" if isinstance(value, Text) or not _is_quoted(origin) else f"drop the quotes: {plain}"
    if isinstance(value, Text) and "," in value and leaf is not None and leaf.is_tuple:
        return f"repeat the option: {' '.join(f'{leaf.options[1]} {each.strip()}' for each in value.split(','))}"
    return None


def _list_help(value: Any, leaf: Leaf | None, origin: Origin) -> str | None:
    if isinstance(value, dict) and leaf is not None and leaf.is_entries:
        return (
            f"write [[{leaf.path}]] for each entry" if origin.name.endswith(".toml") else "begin each entry with '- '"
        )
    if not isinstance(value, (str, int, float)):
        return None
    if leaf is not None and leaf.is_entries:
        return f'write [{{path = "{value}"}}]' if not _is_yaml(origin) else f"write - path: {value}"
    inside = f'"{value}"' if isinstance(value, str) and leaf is not None and leaf.element not in (int, float) else value
    return f"write [{show_choice(inside)}]"


def _table_help(leaf: Leaf | None, path: tuple[Step, ...]) -> str | None:
    if leaf is not None and leaf.is_entries:
        return 'an entry is a table: {path = "rows.jsonl"}'
    return 'write {name = "value"}' if path else None


def _none(origin: Origin) -> str:
    """How this source says None."""
    if origin.kind in ("env", "option", "set"):
        return "write none"
    if origin.kind == "python":
        return "pass None"
    return "write null" if origin.name.endswith((".yaml", ".yml", ".json")) else 'write "none"'


def _is_yaml(origin: Origin) -> bool:
    return origin.name.endswith((".yaml", ".yml"))


def _is_quoted(origin: Origin) -> bool:
    if origin.text is None or origin.column is None:
        return False
    return origin.text[origin.column - 1 : origin.column] in ("'", '"')


def _owner(path: tuple[Step, ...]) -> Leaf | None:
    """The leaf that a path inside a list or a table belongs to."""
    return find(f"{path[0]}.{path[1]}") if len(path) > 1 else None


def _unknown_field(path: tuple[Step, ...], root: Item) -> Problem:
    """An unknown key inside an entry of an array of tables."""
    owner = _owner(path)
    key = str(path[-1])
    known = list(entry_leaves(owner)) if owner is not None and owner.is_entries else []
    near = nearest(key, known)
    advice = f"did you mean '{near}'?" if near else f"an entry has {', '.join(known)}" if known else None
    return Problem(show_path(path), "unknown key", origin_at(root, path, key=True), advice)
