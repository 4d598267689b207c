"""Texts of the environment and the command line, as far as they can be read before the leaf's type is asked.

What opens with a bracket, a brace or a quote is TOML. All else stays text, marked, and is read by the leaf's
type later. `shown` is the whole of what was written, `start` where the value begins in it.
"""

from __future__ import annotations

import re
from typing import Any

from sftctl.config.leaves import Leaf
from sftctl.config.sources import toml
from sftctl.config.sources.items import Item, Lines, Text
from sftctl.errors import OriginKind

_NUMBER = r"[-+]?(\d+|(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?)"


def read(shown: str, start: int, name: str, kind: OriginKind, leaf: Leaf | None) -> Item:
    """The value of a leaf: TOML for `[..]`, `{..}` and quoted text, else the text itself. Raises Unreadable."""
    text = shown[start:]
    wants = "[{\"'" if kind == "set" else "[" if leaf and leaf.is_tuple else "{" if leaf and leaf.is_table else ""
    if text[:1] and text[0] in wants:
        return toml.read_value(shown, start, name, kind)
    return Item(Text(text), *_both(shown, start, len(shown), name, kind))


def read_list(shown: str, start: int, name: str, kind: OriginKind, leaf: Leaf) -> Item:
    """The value of a list in the environment: `a,b` or `["a", "b"]`; `none` stays as it is."""
    item = read(shown, start, name, kind, leaf)
    if isinstance(item.value, list) or (leaf.optional and item.value == "none"):
        return item
    elements = []
    for part in shown[start:].split(","):
        begin = start + (len(part) - len(part.lstrip()))
        elements.append(element(shown, begin, begin + len(part.strip()), name, kind, leaf))
        start += len(part) + 1
    return Item(elements, item.origin, item.key)


def element(shown: str, start: int, end: int, name: str, kind: OriginKind, leaf: Leaf) -> Item:
    """One item of a list, `shown[start:end]`; for an array of tables (`--dataset rows.jsonl`) the path of an entry."""
    origin, key = _both(shown, start, end, name, kind)
    text = Item(Text(shown[start:end]), origin, key)
    return Item({"path": text}, origin, key) if leaf.is_entries else text


def bare(item: Item) -> Item:
    """A text inside a free table, where no type says how to read it: a number, true, false, none, or text."""
    if not isinstance(item.value, Text):
        return item
    text = str(item.value)
    words: dict[str, Any] = {"true": True, "false": False, "none": None}
    if text in words:
        return Item(words[text], item.origin, item.key)
    if re.fullmatch(_NUMBER, text) and len(text) < 400:
        return Item(int(text) if text.lstrip("+-").isdigit() else float(text), item.origin, item.key)
    return Item(text, item.origin, item.key)


def _both(shown: str, start: int, end: int, name: str, kind: OriginKind) -> tuple[Any, Any]:
    lines = Lines(shown, name, kind)
    origin = lines.origin(start, max(end, start + 1))
    return origin, origin
