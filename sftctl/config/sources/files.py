"""Configuration files and what they extend, in the order in which they are laid over each other.

    a.toml (extends base.toml), b.toml      ->  base.toml, a.toml, b.toml

A file that is extended twice over (a diamond) is read once, where it is first needed. A circle is refused, drawn.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Callable, Sequence
from typing import Literal

from sftctl.config import recipes, secrets
from sftctl.config.nearest import nearest
from sftctl.config.sources.items import Document, Item, Lines, Unreadable
from sftctl.errors import Origin, OriginKind, Problem

MAX_BYTES = 10_000_000
"""A configuration is some kilobytes; whoever names a data file here is told so before it is read."""

Format = Literal["toml", "yaml", "json"]
FORMATS: dict[str, Format] = {".toml": "toml", ".yaml": "yaml", ".yml": "yaml", ".json": "json"}


def collect(files: Sequence[str | os.PathLike[str]]) -> tuple[list[Document], list[Problem]]:
    """The documents of `files`, each after what it extends, and every problem of reading them."""
    collector = _Collector()
    for each in files:
        collector.visit(os.fspath(each), None, chain=(), seen=set())
    return collector.documents, collector.problems


def words_at(document: Document, key: str) -> list[tuple[str, Origin]]:
    """A root key that is a text or a list of texts (`extends`, `plugins`), each with its origin. Raises Unreadable."""
    item = document.root.value.get(key)
    if item is None:
        return []
    each = item.value if isinstance(item.value, list) else [item]
    for one in each:
        if not isinstance(one.value, str) or not one.value.strip():
            advice = f'write {key} = ["name"]'
            raise Unreadable(Problem(key, "expected a list of texts", one.origin, advice))
    return [(str(one.value), one.origin) for one in each]


def read(name: str, said_by: Origin | None = None) -> Document:
    """One file. `name` is a path or `recipe:NAME`; `said_by` is where it was named. Raises Unreadable."""
    path = name
    kind: OriginKind = "file"
    if name.startswith(recipes.PREFIX):
        path, kind = _recipe(name, said_by), "recipe"
    suffix = os.path.splitext(path)[1].lower()
    _must_be_readable(name, path, said_by)
    if suffix not in FORMATS:
        message = f"{name}: cannot tell from its name what kind of file this is"
        raise Unreadable(Problem("", message, said_by, "name it .toml, .yaml, .yml or .json"))
    format_name = FORMATS[suffix]
    text = _decoded(name, path, said_by)
    try:
        root = _reader(format_name)(text, name, kind) if text.strip() else Item({}, Origin(kind, name, 1, 1, 2, ""))
    except Unreadable as error:
        raise Unreadable(*(secrets.guess(named(each, name)) for each in error.problems)) from None
    if not isinstance(root.value, dict):
        message = "must be a table of groups" + (", got a list" if isinstance(root.value, list) else "")
        raise Unreadable(Problem("", f"{name}: {message}", root.origin, _ROOT_HELP[format_name]))
    folder = os.path.dirname(os.path.abspath(path))
    return Document(name=name, folder=folder, root=secrets.hide(root), format=format_name)


def text_of(name: str) -> str:
    """The text of a file of any kind, for what is imported. Raises Unreadable."""
    _must_be_readable(name, name, None)
    return _decoded(name, name, None)


_ROOT_HELP: dict[Format, str] = {
    "toml": "write [optim] and below it learning_rate = 2e-5",
    "yaml": "write optim: and below it, indented, learning_rate: 2e-5",
    "json": 'write {"optim": {"learning_rate": 2e-5}}',
}


def _reader(format_name: Format) -> Callable[[str, str, OriginKind], Item]:
    """The reader of a kind of file, imported when there is such a file: each has patterns to compile."""
    module = importlib.import_module(f"sftctl.config.sources.{format_name}")
    reader: Callable[[str, str, OriginKind], Item] = module.read
    return reader


class _Collector:
    def __init__(self) -> None:
        self.documents: list[Document] = []
        self.problems: list[Problem] = []

    def visit(self, name: str, said_by: Origin | None, *, chain: tuple[tuple[str, str], ...], seen: set[str]) -> None:
        """Reads `name` after what it extends. `chain` holds (real path, name) of the files being read."""
        real = os.path.realpath(recipes.find(name) or name if name.startswith(recipes.PREFIX) else name)
        if real in seen:
            return
        if any(real == before for before, _ in chain):
            start = next(index for index, (before, _) in enumerate(chain) if before == real)
            circle = " -> ".join([shown for _, shown in chain[start:]] + [chain[start][1]])
            self.problems.append(Problem("extends", f"goes round in a circle: {circle}", said_by, "remove one of them"))
            return
        try:
            document = read(name, said_by)
            bases = words_at(document, "extends")
        except Unreadable as error:
            self.problems.extend(error.problems)
            return
        for base, origin in bases:
            self.visit(_beside(name, base), origin, chain=(*chain, (real, name)), seen=seen)
        seen.add(real)
        self.documents.append(document)


def _beside(name: str, base: str) -> str:
    """What `base` is, said in the file `name`."""
    base = os.path.expanduser(base)
    if base.startswith(recipes.PREFIX) or os.path.isabs(base):
        return base
    if name.startswith(recipes.PREFIX):
        name = recipes.find(name) or name
    return os.path.normpath(os.path.join(os.path.dirname(name), base))


def named(problem: Problem, name: str) -> Problem:
    """A reader's complaint, which knows lines, with the file's name in front."""
    return dataclasses.replace(problem, message=f"{name}: {problem.message}")


def _recipe(name: str, said_by: Origin | None) -> str:
    path = recipes.find(name)
    if path is not None:
        return path
    known = recipes.names()
    guess = nearest(name.removeprefix(recipes.PREFIX), known)
    advice = f"did you mean 'recipe:{guess}'?" if guess else f"the recipes are {', '.join(known) or 'not installed'}"
    raise Unreadable(Problem("", f"{name}: there is no such recipe", said_by, advice))


def _must_be_readable(name: str, path: str, said_by: Origin | None) -> None:
    try:
        is_folder, is_file = os.path.isdir(path), os.path.isfile(path)
    except ValueError:  # a NUL in the name
        raise Unreadable(Problem("", f"{name!r}: is no file name", said_by)) from None
    if is_folder:
        inside = os.path.join(name, "config.toml")
        advice = f"name the file: {inside}" if os.path.isfile(inside) else "name a file in it"
        raise Unreadable(Problem("", f"{name}: is a folder", said_by, advice))
    if not os.path.exists(path):
        advice = _near_file(path) or "check the path; a relative one starts from " + (
            "the file that says it" if said_by else f"{os.getcwd()}"
        )
        raise Unreadable(Problem("", f"{name}: there is no such file", said_by, advice))
    if not is_file:
        raise Unreadable(Problem("", f"{name}: is not a regular file", said_by))
    if os.path.getsize(path) > MAX_BYTES:
        advice = "rows to train on are named by data.datasets, or --dataset PATH"
        raise Unreadable(Problem("", f"{name}: is too large to be a configuration", said_by, advice))


def _near_file(path: str) -> str | None:
    try:
        siblings = os.listdir(os.path.dirname(path) or ".")
    except OSError:
        return None
    guess = nearest(os.path.basename(path), [each for each in siblings if os.path.splitext(each)[1] in FORMATS])
    return f"did you mean '{os.path.join(os.path.dirname(path), guess)}'?" if guess else None


def _decoded(name: str, path: str, said_by: Origin | None) -> str:
    """The text of a file: UTF-8, with or without a byte-order mark."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise Unreadable(Problem("", f"{name}: cannot be read: {reason}", said_by)) from None
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Unreadable(Problem("", f"{name}: is UTF-16, not UTF-8", said_by, "save it as UTF-8"))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8", "replace")
        line = before.count("\n") + 1
        column = len(before) - (before.rfind("\n") + 1) + 1
        lines = Lines(content.decode("utf-8", "replace"), name)
        message = f"{name}: is not UTF-8: byte 0x{content[error.start]:02x}"
        raise Unreadable(secrets.guess(Problem("", message, lines.at(line, column), "save it as UTF-8"))) from None
