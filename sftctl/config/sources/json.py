"""JSON with positions: `json` decides what is valid, then a scanner says where each key and value stands."""

from __future__ import annotations

import json
import re
from typing import Any

from sftctl.config.sources.items import Item, Lines, Unreadable
from sftctl.errors import OriginKind, Problem

_TOKEN = re.compile(r'[ \t\n\r]*(?:("(?:[^"\\]|\\.)*")|([{}\[\],:])|([^\s,\]}:]+))')


def read(text: str, name: str, kind: OriginKind = "file") -> Item:
    """The root of a JSON text. Raises Unreadable with line and column, also for a key said twice."""
    lines = Lines(text, name, kind)
    try:
        json.loads(text)
        return _Scanner(text, lines).value()
    except json.JSONDecodeError as error:
        before = text[: error.pos + (text[error.pos : error.pos + 1] == ",")].rstrip()
        if before.endswith(",") and text[len(before) :].lstrip()[:1] in ("}", "]"):  # each Python has its own words
            comma = lines.origin(len(before) - 1, len(before))
            raise Unreadable(Problem("", "has a comma with nothing after it", comma, "remove it")) from None
        message = f"is not valid JSON: {error.msg[:1].lower()}{error.msg[1:]}"
        raise Unreadable(Problem("", message, lines.at(error.lineno, error.colno))) from None
    except RecursionError:
        raise Unreadable(Problem("", "is nested too deeply to be a configuration", lines.at(1, 1))) from None
    except ValueError:  # int() of more digits than Python reads
        raise Unreadable(Problem("", "holds a number with too many digits", lines.at(1, 1))) from None


class _Scanner:
    """Reads a valid JSON text a second time, with positions; finds keys said twice."""

    def __init__(self, text: str, lines: Lines) -> None:
        self.text = text
        self.lines = lines
        self.position = 0

    def value(self) -> Item:
        token, start = self._next()
        if token == "{":
            table = self._table()
            return Item(table, self.lines.origin(start, self.position))
        if token == "[":
            items = self._list()
            return Item(items, self.lines.origin(start, self.position))
        return Item(json.loads(token), self.lines.origin(start, self.position))

    def _next(self) -> tuple[str, int]:
        match = _TOKEN.match(self.text, self.position)
        assert match is not None
        assert match.lastindex is not None
        self.position = match.end()
        return match.group(match.lastindex), match.start(match.lastindex)

    def _peek(self) -> str:
        before = self.position
        token, _ = self._next()
        self.position = before
        return token

    def _table(self) -> dict[str, Item]:
        table: dict[str, Item] = {}
        while self._peek() != "}":
            token, start = self._next()
            key = self.lines.origin(start, self.position)
            name: Any = json.loads(token)
            self._next()  # the colon
            item = self.value()
            if name in table:
                first = table[name].key
                advice = f"remove it, or line {first.line}" if first else None
                raise Unreadable(Problem("", f"key {name} is said twice", key, advice, (first,) if first else ()))
            table[name] = Item(item.value, item.origin, key)
            if self._peek() == ",":
                self._next()
        self._next()
        return table

    def _list(self) -> list[Item]:
        items: list[Item] = []
        while self._peek() != "]":
            item = self.value()
            items.append(Item(item.value, item.origin, item.origin))
            if self._peek() == ",":
                self._next()
        self._next()
        return items
