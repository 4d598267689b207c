"""Values of a Python caller: `{"optim.learning_rate": 1e-4}` or `{"optim": {"learning_rate": 1e-4}}`.

Held to the types of the schema as strictly as a file's values are. None is None; paths may be `pathlib.Path`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from sftctl.config import secrets
from sftctl.config.leaves import ENV, groups
from sftctl.config.shape import group_is_no_table, localise, target
from sftctl.config.sources.items import Edit, Item, Layer, show_path, wrap
from sftctl.errors import Origin, Problem

HERE = Origin("python", "overrides")


def read(overrides: Mapping[str, Any], origin: Origin = HERE) -> Layer:
    """The layer of a Python caller. `origin` is where the call stands."""
    edits: list[Edit] = []
    problems: list[Problem] = []
    for path, value in _flatten(overrides):
        if isinstance(value, Problem):
            problems.append(dataclasses.replace(value, origin=origin))
            continue
        found = target(path)
        if found is None:
            problems.append(_unknown(path, value, origin))
            continue
        leaf, leaf_path, inner = found
        try:
            item = wrap(builtin(value), origin)
        except RecursionError:
            problems.append(Problem(show_path(path), "is nested too deeply", origin))
            continue
        if leaf is not None and not inner:
            item = localise(item, leaf, os.getcwd())
        edits.append(Edit("set", leaf_path, secrets.hide(item, (*leaf_path.split(".", 1), *inner)), inner))
    return Layer(tuple(edits), tuple(problems))


def _flatten(overrides: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(dotted path, value) of every override; a group's mapping is taken apart."""
    for key, value in overrides.items():
        if not isinstance(key, str):  # a dict of a Python caller may hold anything
            yield (), Problem(repr(key), "a key of overrides is a text such as 'optim.learning_rate'")
        elif key in groups() and isinstance(value, Mapping):
            for name, each in value.items():
                yield (key, str(name)), each
        elif key in groups() and attrs.has(type(value)):
            for field in attrs.fields(type(value)):
                yield (key, field.name), getattr(value, field.name)
        else:
            yield tuple(key.split(".")), value


def builtin(value: Any) -> Any:
    """Entries (`Dataset(...)`) as mappings, paths as texts, all the way down."""
    if attrs.has(type(value)):
        return {field.name: builtin(getattr(value, field.name)) for field in attrs.fields(type(value))}
    if isinstance(value, Mapping):
        return {key: builtin(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [builtin(each) for each in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _unknown(path: tuple[str, ...], value: Any, origin: Origin) -> Problem:
    from sftctl.config import suggest  # only on the way to an error

    if len(path) == 1 and path[0] in groups():
        return group_is_no_table(path[0], Item(value, origin, origin))
    advice = suggest.for_path(".".join(path)) if path[0] != ENV else "write env.NAME"
    return Problem(show_path(path), "there is no such setting", origin, advice)
