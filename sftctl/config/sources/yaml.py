"""YAML with positions: `yaml.compose` with the C loader, and YAML 1.2's core scalars instead of 1.1's.

PyYAML reads YAML 1.1, where `1e-5` is text, `no` false, `010` eight and `1:30` ninety: each has cost someone a
run. Here `1e-5` is a number, `no` a text, `010` ten and `1:30` a text. Duplicate keys, tags, merge keys and
more than one document are refused.
"""

from __future__ import annotations

import re
from typing import Any

from sftctl.config.sources.items import Item, Lines, Unreadable
from sftctl.errors import Origin, OriginKind, Problem

MAX_NODES = 20_000
"""Anchors can make a small file enormous; a configuration has some hundred nodes."""

_IMPLICIT = "?"
_NULL = re.compile(r"null|Null|NULL|~|")
_TRUE = re.compile(r"true|True|TRUE")
_FALSE = re.compile(r"false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITY = re.compile(r"([-+])?(\.inf|\.Inf|\.INF)")
_NAN = re.compile(r"\.nan|\.NaN|\.NAN")


def read(text: str, name: str, kind: OriginKind = "file") -> Item:
    """The root mapping of a YAML text; an empty file is an empty one. Raises Unreadable with line and column."""
    import yaml  # 8 ms, for those who write YAML

    lines = Lines(text, name, kind)
    try:
        root = _compose(text)
    except yaml.MarkedYAMLError as error:
        raise Unreadable(_problem(error, lines)) from None
    except yaml.YAMLError as error:  # a character that YAML does not allow
        message = getattr(error, "reason", None) or str(error).splitlines()[0]
        position = getattr(error, "position", 0)
        raise Unreadable(Problem("", f"is not valid YAML: {message}", lines.origin(position, position + 1))) from None
    except RecursionError:
        raise Unreadable(Problem("", "is nested too deeply to be a configuration", lines.at(1, 1))) from None
    if root is None:
        return Item({}, lines.at(1, 1))
    builder = _Builder(lines)
    try:
        item = builder.build(root, None, ())
    except RecursionError:
        raise Unreadable(Problem("", "is nested too deeply to be a configuration", lines.at(1, 1))) from None
    if builder.problems:
        raise Unreadable(*builder.problems)
    return item


def _compose(text: str) -> Any:
    """The node tree, every scalar without a tag marked as such, for us to read."""
    import yaml

    # PyYAML built without libyaml has no C loader: the same, slower.
    Loader: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader

    class Composer(Loader):  # type: ignore[misc]  # one of two classes
        def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
            return _IMPLICIT

    loader = Composer(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


class _Builder:
    def __init__(self, lines: Lines) -> None:
        self.lines = lines
        self.problems: list[Problem] = []
        self.count = 0

    def build(self, node: Any, key: Origin | None, open_nodes: tuple[int, ...]) -> Item:
        origin = self._origin(node)
        self.count += 1
        if self.count > MAX_NODES or id(node) in open_nodes:
            raise Unreadable(Problem("", "has anchors that repeat without end", origin, "write the values out"))
        if node.tag not in (_IMPLICIT, "!"):
            self._refuse_tag(node, origin)
            return Item(None, origin, key)
        inside = (*open_nodes, id(node))
        if node.id == "mapping":
            return Item(self._mapping(node, inside), origin, key)
        if node.id == "sequence":
            return Item([self.build(each, self._origin(each), inside) for each in node.value], origin, key)
        return Item(_scalar(node.value, plain=_is_plain(node)), origin, key)

    def _mapping(self, node: Any, inside: tuple[int, ...]) -> dict[str, Item]:
        table: dict[str, Item] = {}
        for key_node, value_node in node.value:
            key = self._origin(key_node)
            name = self._key(key_node, key)
            if name is None:
                continue
            if name in table:
                first = table[name].key
                related = (first,) if first else ()
                line = f"remove it, or line {first.line}" if first else "remove one"
                self.problems.append(Problem("", f"key {name} is said twice", key, line, related))
                continue
            table[name] = self.build(value_node, key, inside)
        return table

    def _key(self, node: Any, origin: Origin) -> str | None:
        """The name that a key is, or None after a complaint."""
        if node.id != "scalar":
            self.problems.append(Problem("", "a key must be a word, not a list or a mapping", origin))
            return None
        if node.tag not in (_IMPLICIT, "!"):
            self._refuse_tag(node, origin)
            return None
        if _is_plain(node) and node.value == "<<":
            message = "merge keys (<<) are not read"
            self.problems.append(Problem("", message, origin, 'use extends = ["base.yaml"], or write the keys out'))
            return None
        return str(node.value)

    def _refuse_tag(self, node: Any, origin: Origin) -> None:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        self.problems.append(Problem("", f"tags are not read, got {tag}", origin, "write the plain value"))

    def _origin(self, node: Any) -> Origin:
        start, end = node.start_mark, node.end_mark
        end_column = end.column + 1 if end.line == start.line else None
        if end_column is None:
            end_column = len(self.lines.line(min(start.line + 1, len(self.lines)))) + 1
        return self.lines.at(start.line + 1, start.column + 1, end_column)


def _is_plain(node: Any) -> bool:
    """No quotes and no block: the C loader says "", the Python one None."""
    return not node.style


def _scalar(text: str, *, plain: bool) -> Any:
    """YAML 1.2 core schema: `010` is 10, `1e-5` a float, `no` and `1:30` are text. Quoted: text."""
    if not plain:
        return text
    if _NULL.fullmatch(text):
        return None
    if _TRUE.fullmatch(text):
        return True
    if _FALSE.fullmatch(text):
        return False
    if _INT.fullmatch(text):
        return int(text) if len(text) < 4000 else float(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    if match := _INFINITY.fullmatch(text):
        return float("-inf") if match.group(1) == "-" else float("inf")
    return float("nan") if _NAN.fullmatch(text) else text


def _problem(error: Any, lines: Lines) -> Problem:
    """libyaml's complaint, with the place and what to do about the usual ones."""
    origin = _at_mark(error.problem_mark or error.context_mark, lines)
    reason = error.problem or error.context or "it cannot be read"
    line = origin.text or ""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return Problem("", "is indented with a tab", origin, "YAML indents with spaces")
    if "expected a single document" in (error.context or ""):
        return Problem("", "holds more than one YAML document", origin, "keep one; remove the '---' between them")
    advice = "put quotes around the text" if ": " in line.partition(":")[2] or "cannot start" in reason else None
    opened = _at_mark(error.context_mark, lines) if error.context_mark is not None else origin
    related = (opened,) if opened.line != origin.line else ()
    return Problem("", f"is not valid YAML: {reason}", origin, advice, related)


def _at_mark(mark: Any, lines: Lines) -> Origin:
    """A mark of PyYAML's as an Origin; one beyond the last line is at the end of the text."""
    number = len(lines)
    if mark is not None and mark.line < number:
        return lines.at(mark.line + 1, mark.column + 1)
    while number > 1 and not lines.line(number).strip():
        number -= 1
    return lines.at(number, len(lines.line(number)) + 1)


def reads_as_text(text: str) -> bool:
    """Whether a plain scalar is text for this reader; the writer puts quotes around all others."""
    return isinstance(_scalar(text, plain=True), str)
