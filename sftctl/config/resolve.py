"""The front door: sources -> layers -> one strict, frozen Bundle with the origin of every leaf.

Priority, low to high: defaults, files (left to right, each after what it extends), environment, options,
overrides of a Python caller. Every problem of every layer is in the one ConfigError that is raised.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import attrs

from sftctl.config import convert, layers, registry, rules, shape
from sftctl.config.facts import Facts
from sftctl.config.layers import DEFAULT, Sayings
from sftctl.config.leaves import ENV, Leaf, find, leaves
from sftctl.config.schema import Bundle
from sftctl.config.sources import env as env_source
from sftctl.config.sources import files as file_source
from sftctl.config.sources import options as option_source
from sftctl.config.sources import overrides as override_source
from sftctl.config.sources.items import Document, Item, Layer, Unreadable, plain
from sftctl.config.sources.options import Assignment
from sftctl.config.table import Table
from sftctl.errors import ConfigError, Origin, Problem


class Shadowed(NamedTuple):
    """A value that a later source replaced, and where it stands."""

    value: Any
    origin: Origin


class Node(NamedTuple):
    """A leaf's value, where it came from, and what it shadows (nearest first, the default last)."""

    path: str
    value: Any
    origin: Origin
    shadowed: tuple[Shadowed, ...] = ()


@attrs.frozen
class Resolved:
    """A bundle and the node of every leaf, those of `env` (`env.NAME`) among them.

    `notes` are what was noticed and is no error. `facts` is what rules ask; `rules.ready` takes it.
    """

    bundle: Bundle
    nodes: Mapping[str, Node]
    notes: tuple[Problem, ...]
    facts: Facts = attrs.field(eq=False, repr=False)

    @property
    def digest(self) -> str:
        """16 hex digits that say the same for equal bundles; secrets do not count."""
        from sftctl.config.show import digest  # json and hashlib, only for who asks

        return digest(self.bundle)


def resolve(
    files: Sequence[str | os.PathLike[str]] = (),
    *,
    env: Mapping[str, str] | None = None,
    options: Sequence[Assignment] = (),
    overrides: Mapping[str, Any] | None = None,
    plugins: Sequence[str] = (),
    caller: Origin = override_source.HERE,
) -> Resolved:
    """One bundle out of files, environment, options and overrides.

    `files`: paths, or `recipe:NAME`. `env`: the environment, or None to leave it aside. `plugins`: modules that
    register groups, beside those that the files name. `caller`: where a Python call stands. Raises ConfigError
    with all problems of all sources.
    """
    documents, problems = file_source.collect(files)
    problems += _load_plugins(documents, plugins)
    stack: list[Layer] = [shape.lay(each) for each in documents]
    if env is not None:
        stack.append(env_source.read(env))
    stack.append(option_source.read(options))
    if overrides:
        stack.append(override_source.read(overrides, caller))
    return resolve_layers(stack, problems, order=[document.name for document in documents])


def resolve_layers(stack: Sequence[Layer], problems: Sequence[Problem] = (), order: Sequence[str] = ()) -> Resolved:
    """One bundle out of layers, the last with the most say. Raises ConfigError with their problems and more.

    `order` are the names of the files, in which their problems are reported.
    """
    sayings, found = layers.merge(stack)
    return _build(sayings, [*problems, *found], order)


def _build(sayings: Sayings, problems: list[Problem], order: Sequence[str]) -> Resolved:
    """Structure, rules, nodes; all problems at once where there are any."""
    converter = convert.Converter()
    root = layers.tree(sayings)
    shadowed, wrong = _shadowed(converter, sayings)
    problems = problems + wrong
    bundle: Bundle | None = None
    try:
        bundle = _with_default_paths(converter.bundle(plain(root)), sayings)
    except Exception as error:
        problems += _explain(error, (), root)
    items = {path: said[-1].item for path, said in sayings.items() if said[-1].item is not None}
    ranks = {path: said[-1].rank for path, said in sayings.items()}
    if bundle is None:
        raise ConfigError(*_sorted(problems, order))
    facts = Facts(bundle, items, ranks)
    errors, notes = rules.check(facts)
    problems += errors
    if problems:
        raise ConfigError(*_sorted(problems, order))
    notes += registry.load_installed()
    return Resolved(bundle, _nodes(bundle, sayings, shadowed), tuple(notes), facts)


def _shadowed(converter: convert.Converter, sayings: Sayings) -> tuple[dict[str, tuple[Shadowed, ...]], list[Problem]]:
    """The values that were said and do not count, nearest first; they are held to the same types."""
    values: dict[str, tuple[Shadowed, ...]] = {}
    problems: list[Problem] = []
    for path, said in sayings.items():
        leaf = find(path)
        below = []
        for each in reversed(said[:-1]):
            if each.item is None:
                below.append(Shadowed(_default(leaf), each.origin))
                continue
            try:
                below.append(Shadowed(converter.leaf(leaf, plain(each.item)), each.origin))
            except Exception as error:
                group, _, name = path.partition(".")
                root = Item({group: Item({name: each.item}, each.origin)}, each.origin)
                problems += _explain(error, (group, name), root)
        values[path] = tuple(below)
    return values, problems


def _explain(error: BaseException, path: tuple[str | int, ...], root: Item) -> list[Problem]:
    from sftctl.config import hints  # only on the way to an error

    return [hints.problem(where, failure, root) for where, failure in convert.failures(error, path)]


def _nodes(bundle: Bundle, sayings: Sayings, shadowed: Mapping[str, tuple[Shadowed, ...]]) -> dict[str, Node]:
    nodes: dict[str, Node] = {}
    for leaf in leaves().values():
        value = value_of(bundle, leaf)
        said = sayings.get(leaf.path, ())
        below = shadowed.get(leaf.path, ())
        if said:
            below = (*below, Shadowed(_default(leaf), DEFAULT))
        nodes[leaf.path] = Node(leaf.path, value, said[-1].origin if said else DEFAULT, below)
    for name, value in bundle.env.items():
        path = f"{ENV}.{name}"
        nodes[path] = Node(path, value, sayings[path][-1].origin, shadowed[path])
    return nodes


def value_of(bundle: Bundle, leaf: Leaf) -> Any:
    """A leaf's value in a bundle, of a registered group too."""
    holder = bundle.extensions[leaf.group] if leaf.group in bundle.extensions else getattr(bundle, leaf.group)
    value = getattr(holder, leaf.name)
    return float(value) if leaf.base is float and isinstance(value, int) else value


def default_of(leaf: Leaf) -> Any:
    """A leaf's default as a resolved bundle holds it: a path is absolute there."""
    if leaf.is_path and isinstance(leaf.default, str) and leaf.default not in leaf.words:
        return os.path.abspath(leaf.default)
    return leaf.default


def _default(leaf: Leaf | None) -> Any:
    return None if leaf is None else default_of(leaf)


def _with_default_paths(bundle: Bundle, sayings: Sayings) -> Bundle:
    """The bundle, with the paths that are defaults made absolute (`run.output_dir`)."""
    for leaf in leaves().values():
        if leaf.is_path and default_of(leaf) != leaf.default and value_of(bundle, leaf) == leaf.default:
            said = sayings.get(leaf.path)
            if said is None or said[-1].item is None:
                bundle = _with(bundle, leaf, default_of(leaf))
    return bundle


def _with(bundle: Bundle, leaf: Leaf, value: Any) -> Bundle:
    if leaf.group in bundle.extensions:
        changed = attrs.evolve(bundle.extensions[leaf.group], **{leaf.name: value})
        return attrs.evolve(bundle, extensions=Table({**bundle.extensions, leaf.group: changed}))
    changed = attrs.evolve(getattr(bundle, leaf.group), **{leaf.name: value})
    return attrs.evolve(bundle, **{leaf.group: changed})


_ORDER = {"recipe": 0, "file": 0, "env": 1, "option": 2, "set": 2, "python": 3}


def _sorted(problems: Sequence[Problem], order: Sequence[str]) -> list[Problem]:
    """By source: files in the order they were read, environment, options, Python; then by line and column."""
    names = list(dict.fromkeys([*order, *(each.origin.name for each in problems if each.origin is not None)]))

    def key(problem: Problem) -> tuple[int, int, int, int]:
        origin = problem.origin
        if origin is None or origin.kind not in _ORDER:
            return (0 if not problem.path else 4, 0, 0, 0)
        in_file = origin.kind in ("file", "recipe")
        return (_ORDER[origin.kind], names.index(origin.name) if in_file else 0, origin.line or 0, origin.column or 0)

    unique = dict.fromkeys(problems)
    return sorted(unique, key=key)


def _load_plugins(documents: Sequence[Document], plugins: Sequence[str]) -> list[Problem]:
    """Imports the modules that files and the caller name; a group registers itself while it is imported."""
    problems: list[Problem] = []
    wanted: list[tuple[str, Origin | None]] = [(name, None) for name in plugins]
    for document in documents:
        try:
            wanted += file_source.words_at(document, "plugins")
        except Unreadable as error:
            problems += error.problems
    for name, origin in wanted:
        problems += registry.load(name, origin)
    return problems
