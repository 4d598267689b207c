"""TOML with positions: `tomllib` decides what is valid, then a scanner says where each key and value stands.

The scanner runs on text that is known to be valid, so it needs no error of its own; it costs about what
`tomllib` does. No well-kept pure-Python library gives positions (tomlkit keeps them to itself, at 30 times the cost).

    [optim]                     ("optim",)                  1:1
    betas = [0.9, 0.95]         ("optim", "betas")          key 2:1, value 2:9
                                ("optim", "betas", 1)       value 2:15
"""

from __future__ import annotations

import re
import tomllib
from typing import Any

from sftctl.config.sources.items import Item, Lines, NoneWord, Path, Unreadable
from sftctl.errors import Origin, OriginKind, Problem

Spans = dict[Path, tuple[int, int, int, int]]
"""Offsets (key start, key end, value start, value end) by path."""


def read(text: str, name: str, kind: OriginKind = "file") -> Item:
    """The root table of a TOML text. Raises Unreadable with line and column."""
    text = text.replace("\r\n", "\n")
    lines = Lines(text, name, kind)
    try:
        data = tomllib.loads(text)
        spans = _Scanner(text).scan()
        return _build(data, (), spans, lines)
    except RecursionError:
        raise Unreadable(Problem("", "is nested too deeply to be a configuration", lines.at(1, 1))) from None
    except ValueError as error:  # TOMLDecodeError, and int() of more digits than Python reads
        raise Unreadable(_problem(error, lines)) from None


def read_value(shown: str, start: int, name: str, kind: OriginKind) -> Item:
    """The TOML value at `shown[start:]`, as `[0.9, 0.95]` in `--set optim.betas=[0.9, 0.95]`. Raises Unreadable.

    Positions are columns of `shown`: what is before the value is replaced by a key of the same width.
    """
    assert start >= 2
    text = "v=" + " " * (start - 2) + shown[start:]
    lines = Lines(shown, name, kind)
    try:
        data = tomllib.loads(text)
        if list(data) != ["v"]:
            raise Unreadable(Problem("", "is more than one value", lines.origin(start, len(shown))))
        return _build(data["v"], ("v",), _Scanner(text).scan(), lines)
    except RecursionError:
        raise Unreadable(Problem("", "is nested too deeply", lines.origin(start, len(shown)))) from None
    except ValueError as error:
        raise Unreadable(_problem(error, lines)) from None


def _build(data: Any, path: Path, spans: Spans, lines: Lines) -> Item:
    key_start, key_end, start, end = spans.get(path, (0, 0, 0, 0))
    origin = lines.origin(start, end)
    key = lines.origin(key_start, key_end) if key_end else origin
    if isinstance(data, dict):
        return Item({name: _build(each, (*path, name), spans, lines) for name, each in data.items()}, origin, key)
    if isinstance(data, list):
        return Item([_build(each, (*path, index), spans, lines) for index, each in enumerate(data)], origin, key)
    return Item(NoneWord(data) if isinstance(data, str) and data == "none" else data, origin, key)


_BLANK = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_KEY = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*'""")
_SCALAR = re.compile(
    r'''"""(?:[^"\\]|\\[\s\S]|""?(?!"))*"{3,5}'''
    r"""|'''(?:[^']|''?(?!'))*'{3,5}"""
    r"""|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[^,\]}#\n]*[^,\]}#\n \t]"""
)


class _Scanner:
    """Walks a valid TOML text once and notes where everything stands."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.spans: Spans = {}
        self._counts: dict[Path, int] = {}

    def scan(self) -> Spans:
        base: Path = ()
        while self._skip(_BLANK) < len(self.text):
            base = self._header() if self.text[self.position] == "[" else self._pair(base)
        return self.spans

    def _skip(self, pattern: re.Pattern[str]) -> int:
        match = pattern.match(self.text, self.position)
        assert match is not None
        self.position = match.end()
        return self.position

    def _header(self) -> Path:
        """`[a.b]` or `[[a.b]]`: the path of the table that the lines below belong to."""
        start = self.position
        is_array = self.text.startswith("[[", start)
        self.position += 1 + is_array
        parts = self._keys()
        self.position += 1 + is_array
        path: Path = ()
        for number, (name, key_start, key_end) in enumerate(parts, 1):
            path = (*path, name)
            is_last = number == len(parts)
            self.spans.setdefault(path, (key_start, key_end, start, self.position))
            if is_array and is_last:
                self._counts[path] = self._counts.get(path, 0) + 1
            if path in self._counts:
                path = (*path, self._counts[path] - 1)
            if is_last:
                self.spans[path] = (key_start, key_end, start, self.position)
        return path

    def _pair(self, base: Path) -> Path:
        path = base
        for name, start, end in self._keys():
            path = (*path, name)
            self.spans.setdefault(path, (start, end, start, end))
        self.position += 1  # the equals sign
        self._skip(_SPACE)
        self._value(path)
        return base

    def _keys(self) -> list[tuple[str, int, int]]:
        parts = []
        while True:
            self._skip(_SPACE)
            start = self.position
            raw = self.text[start : self._skip(_KEY)]
            name = tomllib.loads(f"key = {raw}")["key"] if raw[0] in "\"'" else raw
            parts.append((name, start, self.position))
            self._skip(_SPACE)
            if self.text[self.position] != ".":
                return parts
            self.position += 1

    def _value(self, path: Path) -> None:
        start = self.position
        if self.text[start] == "[":
            self._sequence(path, "]")
        elif self.text[start] == "{":
            self._sequence(path, "}")
        else:
            self._skip(_SCALAR)
        key_start, key_end, _, _ = self.spans.get(path, (0, 0, 0, 0))
        self.spans[path] = (key_start, key_end, start, self.position)

    def _sequence(self, path: Path, closing: str) -> None:
        self.position += 1
        index = 0
        while self.text[self._skip(_BLANK)] != closing:
            if closing == "}":
                self._pair(path)
            else:
                self._value((*path, index))
                index += 1
            if self.text[self._skip(_BLANK)] == ",":
                self.position += 1
        self.position += 1


_PLACE = r" \(at (?:line (\d+), column (\d+)|end of document)\)$"
_BARE = r"^\s*[\w.\"-]+\s*=\s*([A-Za-z_][\w./:@-]*)"
_COLON = r"^\s*[\w-]+\s*:"


def _problem(error: ValueError, lines: Lines) -> Problem:
    """tomllib's complaint in our words, with the place and what to do."""
    complaint = str(error)
    place = re.search(_PLACE, complaint)
    if place is None:
        return Problem("", "holds a number with too many digits", lines.at(1, 1))
    reason = complaint[: place.start()]
    if place.group(1) is None:
        number = len(lines)
        while number > 1 and not lines.line(number).strip():
            number -= 1
        origin = lines.at(number, len(lines.line(number)) + 1)
    else:
        origin = lines.at(int(place.group(1)), int(place.group(2)))
    if (opening := _unclosed(origin, lines)) is not None:
        return Problem("", "a text that begins here does not end on its line", opening, "close it with the same quote")
    if reason.startswith(("Cannot declare", "Cannot overwrite", "Cannot mutate", "Cannot redefine", "Duplicate")):
        return _duplicate(origin, lines)
    if place.group(1) is None:
        return Problem("", "ends in the middle of a value", origin, "close the list, table or text that is open")
    return Problem("", f"is not valid TOML: {reason[:1].lower()}{reason[1:]}", origin, _help(origin.text or ""))


_OPEN = r"""^[^"'#]*(?:"(?:[^"\\]|\\.)*"[^"'#]*|'[^']*'[^"'#]*)*(["'])"""


def _unclosed(origin: Origin, lines: Lines) -> Origin | None:
    """Where a text opens that its line does not close; only on the line of the complaint and the two before."""
    assert origin.line is not None
    for number in range(origin.line, max(0, origin.line - 3), -1):
        text = lines.line(number)
        match = re.match(_OPEN, text)
        if match is not None and not text.startswith(match.group(1) * 3, match.start(1)):
            rest = text[match.start(1) + 1 :]
            if match.group(1) not in rest:
                return lines.at(number, match.start(1) + 1, len(text) + 1)
    return None


def _duplicate(origin: Origin, lines: Lines) -> Problem:
    """A key or table said twice: mark the second, and name the first."""
    assert origin.line is not None
    text = lines.line(origin.line)
    stripped = text.strip()
    is_table = stripped.startswith("[")
    said = stripped.partition("#")[0].strip() if is_table else stripped.partition("=")[0].strip()
    column = text.index(stripped) + 1 if stripped else 1
    here = lines.at(origin.line, column, column + len(said))
    related = []
    for number in range(origin.line - 1, 0, -1):
        other = lines.line(number).strip()
        if is_table and other.partition("#")[0].strip() == said:
            related.append(lines.at(number, lines.line(number).index(other) + 1))
            break
        if not is_table and other.startswith("["):
            break
        if not is_table and other.partition("=")[0].strip() == said:
            related.append(lines.at(number, lines.line(number).index(other) + 1))
            break
    what = f"table {said}" if is_table else f"key {said}"
    advice = f"merge it with line {related[0].line}" if related else "say it once"
    return Problem("", f"{what} is said twice", here, advice, tuple(related))


def _help(line: str) -> str | None:
    """What to write instead of the usual slips."""
    if re.match(_COLON, line):
        return "TOML puts '=' between key and value, not ':'"
    bare = re.match(_BARE, line)
    if bare is None:
        return None
    word = bare.group(1)
    if word.lower() in ("true", "false", "yes", "no", "on", "off"):
        return f"write {'true' if word.lower() in ('true', 'yes', 'on') else 'false'}"
    if word.lower() in ("none", "null", "nil"):
        return 'TOML has no null: leave the key out, or write "none"'
    return f'text needs quotes: "{word}"'
