"""The environment: `SFTCTL_OPTIM__LEARNING_RATE=1e-4`.

A variable of that prefix that is for no setting is an error, so that a slip of the pen is found; an empty one
is unset. `SFTCTL_TEST_...` belongs to our own tests.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from sftctl.config import secrets
from sftctl.config.leaves import ENV, find
from sftctl.config.shape import localise
from sftctl.config.sources import texts
from sftctl.config.sources.items import Edit, Item, Layer, Lines, Unreadable
from sftctl.errors import Problem

PREFIX = "SFTCTL_"
NOT_OURS = ("SFTCTL_TEST_",)


def read(env: Mapping[str, str]) -> Layer:
    """The layer of the variables with our prefix, sorted by name."""
    edits: list[Edit] = []
    problems: list[Problem] = []
    for name in sorted(env):
        if not name.upper().startswith(PREFIX) or name.startswith(NOT_OURS) or not env[name]:
            continue
        try:
            edits.append(_edit(name, env[name]))
        except Unreadable as error:
            problems.extend(error.problems)
    return Layer(tuple(edits), tuple(problems))


def _edit(name: str, text: str) -> Edit:
    shown = f"{name}={text}"
    lines = Lines(shown, name, "env")
    whole = lines.origin(0, len(name))
    group, separator, rest = name[len(PREFIX) :].partition("__")
    if name.startswith(f"{PREFIX}{ENV.upper()}__") and rest:
        item = texts.read(shown, len(name) + 1, name, "env", None)
        item = secrets.hide(Item({ENV: Item({rest: item}, item.origin)}, item.origin)).value[ENV].value[rest]
        return Edit("set", f"{ENV}.{rest}", item)
    leaf = find(f"{group.lower()}.{rest.lower()}") if separator else None
    if leaf is None:
        from sftctl.config import suggest  # only on the way to an error

        origin = secrets.guess(Problem("", "", whole)).origin
        raise Unreadable(Problem(name, "is for no setting", origin, suggest.for_env(name)))
    if name != leaf.env:
        raise Unreadable(Problem(name, "is not written in capitals", whole, f"write {leaf.env}"))
    try:
        read_text = texts.read_list if leaf.is_tuple else texts.read
        item = read_text(shown, len(name) + 1, name, "env", leaf)
    except Unreadable as error:
        raise Unreadable(
            *(Problem(leaf.path, each.message, each.origin, _list_help(leaf.is_tuple)) for each in error.problems)
        ) from None
    return Edit("set", leaf.path, localise(item, leaf, os.getcwd()))


def _list_help(is_list: bool) -> str:
    return 'a list is written a,b or ["a", "b"]' if is_list else 'a table is written {name = "value"}'
