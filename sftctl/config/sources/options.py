"""Options of the command line, as the CLI found them, read into a Layer.

The CLI knows spellings; this module knows what the texts mean. Texts are marked, and read later by the leaf's
type. A list is given by repetition; `--set` reaches everything else:

    --set optim.betas=[0.9,0.95]                     a TOML value
    --set model.architecture.hidden_size=64          a key of a free table
    --set 'data.datasets+=[{path="more.jsonl"}]'     what is there, and more
    --set '~optim.max_grad_norm'                     back to the default
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from sftctl.config import secrets
from sftctl.config.leaves import ENV, Leaf, find, groups, with_article
from sftctl.config.shape import localise, target
from sftctl.config.sources import texts
from sftctl.config.sources.items import Edit, Item, Layer, Lines, Text, Unreadable
from sftctl.errors import Origin, Problem


class Assignment(NamedTuple):
    """One assignment of the command line, in the order it was typed.

    `--learning-rate 1e-4`   Assignment("--learning-rate", "option", "optim.learning_rate", "1e-4")
    `--no-packing`           Assignment("--no-packing", "option", "sft.packing", "false")
    `--tags a --tags b`      two assignments, one a repetition
    `--dataset rows.jsonl`   Assignment("--dataset", "option", "data.datasets", "rows.jsonl")
    `--dataset '{path="rows.jsonl", limit=9}'`  the same with other leaves of the entry
    `--set optim.betas=[0.9,0.95]`  Assignment("--set", "set", None, "optim.betas=[0.9,0.95]")
    """

    spelling: str
    kind: Literal["option", "set"]
    path: str | None
    text: str | None


def read(assignments: Sequence[Assignment]) -> Layer:
    """The layer of the command line. One setting said twice is an error, but for lists and `+=`."""
    edits: list[Edit] = []
    problems: list[Problem] = []
    for each in assignments:
        try:
            edits.extend(_set(each) if each.kind == "set" else [_option(each)])
        except Unreadable as error:
            problems.extend(secrets.guess(problem) for problem in error.problems)
    gathered, twice = _gather(edits)
    return Layer(tuple(gathered), (*problems, *twice))


def _option(assignment: Assignment) -> Edit:
    leaf = find(assignment.path or "")
    assert leaf is not None, f"the CLI knows the leaves: {assignment}"
    spelling, text = assignment.spelling, assignment.text
    whole = Lines(spelling, spelling, "option").origin(0, len(spelling))
    if text is None:
        raise Unreadable(Problem(leaf.path, "needs a value", whole))
    if leaf.is_flag and text in ("true", "false"):
        return Edit("set", leaf.path, Item(Text(text), whole, whole))
    shown = f"{spelling} {text}"
    start = len(spelling) + 1
    if leaf.is_entries and text.lstrip().startswith("{"):  # a whole entry, as a TOML table
        item = Item([texts.read(shown, start, spelling, "set", leaf)], whole, whole)
    elif leaf.is_tuple and not (leaf.optional and text == "none"):
        item = texts.element(shown, start, len(shown), spelling, "option", leaf)
        item = Item([item], item.origin, item.key)
    else:
        item = texts.read(shown, start, spelling, "option", leaf)
    return Edit("set", leaf.path, localise(item, leaf, os.getcwd()))


_PART = r"""\s*(?:([\w-]+)|"([^"]*)"|'([^']*)')\s*(?:\.|$)"""


def _set(assignment: Assignment) -> list[Edit]:
    text = assignment.text or ""
    shown = f"{assignment.spelling} {text}"
    begin = len(assignment.spelling) + 1
    lines = Lines(shown, assignment.spelling, "set")
    if text.startswith("~"):
        origin = lines.origin(begin, len(shown))
        return [Edit("reset", path, Item(None, origin, origin)) for path in _resettable(text[1:].strip(), origin)]
    left, equals, _ = text.partition("=")
    if not equals:
        advice = f"write {assignment.spelling} PATH=VALUE, as in {assignment.spelling} optim.betas=[0.9,0.95]"
        raise Unreadable(Problem("", f"'{text}' sets nothing: it has no '='", lines.origin(begin, len(shown)), advice))
    adds = left.endswith("+")
    path = left[: len(left) - adds].strip()
    origin = lines.origin(begin, begin + max(1, len(path)))
    if not path:
        message = "names no setting before the '='"
        raise Unreadable(Problem("", message, origin, f"write {assignment.spelling} PATH=VALUE"))
    leaf, leaf_path, inner = _target(path, origin)
    try:
        item = texts.read(shown, begin + len(left) + 1, assignment.spelling, "set", leaf)
    except Unreadable as error:
        advice = "text needs quotes, and the shell takes them away: put the whole of PATH=VALUE in single quotes"
        found = (dataclasses.replace(each, path=path, help=each.help or advice) for each in error.problems)
        raise Unreadable(*found) from None
    if inner:
        item = item if leaf is None or leaf.value_type is str else texts.bare(item)
    elif leaf is not None:
        item = localise(item, leaf, os.getcwd())
    if adds:
        return [_append(leaf, leaf_path, inner, item, origin)]
    return [Edit("set", leaf_path, _hide(item, leaf_path, inner), inner)]


def _append(leaf: Leaf | None, path: str, inner: tuple[str, ...], item: Item, origin: Origin) -> Edit:
    """`+=`: for lists; one value is a list of one."""
    if leaf is None or not leaf.is_tuple or inner:
        what = with_article(leaf) if leaf is not None and not inner else "no list"
        raise Unreadable(Problem(path, f"+= adds to a list, and this is {what}", origin, "write = instead of +="))
    if not isinstance(item.value, list):
        one = item
        if leaf.is_entries and isinstance(item.value, Text):
            one = localise(Item([Item({"path": item}, item.origin)], item.origin), leaf, os.getcwd()).value[0]
        item = Item([one], item.origin, item.key)
    return Edit("append", path, item)


def _hide(item: Item, path: str, inner: tuple[str, ...]) -> Item:
    return secrets.hide(item, (*path.split(".", 1), *inner))


def _target(path: str, origin: Origin) -> tuple[Leaf | None, str, tuple[str, ...]]:
    parts = _parts(path)
    found = target(parts) if parts else None
    if found is not None:
        return found
    from sftctl.config import suggest  # only on the way to an error

    stem = find(".".join(parts[:2]).partition("[")[0]) if parts else find(path.partition("[")[0])
    if stem is not None and stem.is_tuple:
        advice = f"set the whole list, {stem.path}=[...], or add to it, {stem.path}+=[...]"
        raise Unreadable(Problem(path, "one item of a list cannot be set by itself", origin, advice))
    if stem is not None:
        raise Unreadable(Problem(path, f"{stem.path} is {with_article(stem)}, and has no keys", origin))
    raise Unreadable(Problem(path, "there is no such setting", origin, suggest.for_path(path)))


def _parts(path: str) -> tuple[str, ...]:
    """`model.architecture."a.b"` -> ("model", "architecture", "a.b"); nothing where it is no dotted path."""
    parts, position = [], 0
    while position < len(path):
        match = re.compile(_PART).match(path, position)
        if match is None:
            return ()
        parts.append(next(group for group in match.groups() if group is not None))
        position = match.end()
    return tuple(parts)


def _resettable(path: str, origin: Origin) -> list[str]:
    """What `~path` resets: a leaf, `env.NAME`, or every leaf of a group."""
    if path in groups() and path != ENV:
        return [leaf.path for leaf in groups()[path].leaves]
    _, leaf_path, inner = _target(path, origin)
    if inner:
        raise Unreadable(Problem(path, "only a whole setting goes back to its default", origin, f"write ~{leaf_path}"))
    return [leaf_path]


def _gather(edits: Sequence[Edit]) -> tuple[list[Edit], list[Problem]]:
    """Repetitions of a list as one edit; a problem for whatever else is said twice."""
    gathered: list[Edit] = []
    problems: list[Problem] = []
    first: dict[tuple[str, tuple[str, ...]], int] = {}
    for edit in edits:
        place = (edit.path, edit.inner)
        before = gathered[first[place]] if place in first else None
        if before is None:
            first[place] = len(gathered)
            gathered.append(edit)
            continue
        kinds = {before.item.origin.kind, edit.item.origin.kind}
        leaf = find(edit.path)
        repeats = leaf is not None and leaf.is_tuple and kinds == {"option"} and isinstance(before.item.value, list)
        if repeats and isinstance(edit.item.value, list):
            both = [*before.item.value, *edit.item.value]
            gathered[first[place]] = before._replace(item=before.item._replace(value=both))
        elif kinds == {"set"} and edit.action == "append":
            gathered.append(edit)
        else:
            problems.append(_twice(before, edit))
    return gathered, problems


def _twice(before: Edit, edit: Edit) -> Problem:
    names = " and ".join(dict.fromkeys((before.item.origin.name, edit.item.origin.name)))
    return Problem(edit.path, f"is given twice, by {names}", edit.item.origin, "give it once", (before.item.origin,))
