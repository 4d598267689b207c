"""`config import`: a TRL YAML, or a command line with TRL's flags, as a TOML file of ours that loads.

What cannot be carried over is named, by line, with its reason: on standard error, and as comments in the file.
The mapping is `trl.FIELDS`; values are read the way TRL reads them (YAML 1.1's yes and no, 2e-5 without a point).
A setting that this version of sftctl cannot do yet becomes a comment too, so that the file always loads.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from sftctl.config import secrets
from sftctl.config.convert import Converter, failures
from sftctl.config.leaves import ENV, Leaf, find, groups, leaves
from sftctl.config.nearest import nearest
from sftctl.config.resolve import resolve_layers
from sftctl.config.shape import localise
from sftctl.config.sources import files as file_source
from sftctl.config.sources import yaml as yaml_source
from sftctl.config.sources.items import Edit, Item, Layer, Lines, Text, Unreadable, plain, wrap
from sftctl.config.trl import FIELDS
from sftctl.config.values import show_value
from sftctl.errors import ConfigError, Problem


@attrs.frozen
class Imported:
    """The text of the file, and what was left out: a Problem each, with the line it stands on."""

    text: str
    left: tuple[Problem, ...]


def import_trl(path: str, *, target: str | None = None) -> Imported:
    """A file of TRL's as one of ours. `target` is where it will lie; none: the working directory.

    Raises ConfigError where the file cannot be read at all.
    """
    try:
        fields = _read(path)
    except Unreadable as error:
        raise ConfigError(*error.problems) from None
    carried, left = _carry(fields)
    carried, refused = _that_loads(carried)
    folder = os.path.dirname(os.path.abspath(target)) if target else os.getcwd()
    left = sorted([*left, *refused], key=_line)
    return Imported(_render(path, carried, left, folder), tuple(left))


def _read(path: str) -> dict[str, Item]:
    """The fields of a YAML file, or of the command line in a shell script."""
    text = file_source.text_of(path)
    if re.search(r"(^|\s)--[a-z_]+", text) and not re.search(r"^[a-z_]+:", text, re.MULTILINE):
        return _flags(text, path)
    try:
        root = yaml_source.read(text, path)
    except Unreadable as error:
        raise Unreadable(*(secrets.guess(file_source.named(each, path)) for each in error.problems)) from None
    if not isinstance(root.value, dict):
        raise Unreadable(Problem("", f"{path}: holds no settings", root.origin, "a TRL file is a YAML mapping"))
    return dict(secrets.hide(root, ("trl",)).value)


_FLAG = re.compile(r"""(?<!\S)--([A-Za-z][\w-]*)(?:=(\S+))?""")
_WORD = re.compile(r"""\s*("[^"]*"|'[^']*'|(?!--)[^\s#;|&"']+)""")


def _flags(text: str, path: str) -> dict[str, Item]:
    """`--learning_rate 2e-5 --packing --lora_target_modules q_proj v_proj`, over as many lines as there are."""
    lines = Lines(text, path)
    text = re.sub(r"\\\r?\n", lambda match: " " * len(match.group()), text)
    fields: dict[str, Item] = {}
    for match in _FLAG.finditer(text):
        name = match.group(1).replace("-", "_")
        origin = lines.origin(match.start(1) - 2, match.end(1))
        words = [match.group(2)] if match.group(2) else []
        position = match.end()
        while not match.group(2) and (word := _WORD.match(text, position)) and "\n" not in word.group():
            words.append(word.group(1).strip("\"'"))
            position = word.end()
        value: Any = [Text(each) for each in words] if len(words) > 1 else Text(words[0]) if words else True
        if not words and name.startswith("no_") and name not in FIELDS:
            name, value = name.removeprefix("no_"), False
        fields[name] = Item(wrap(value, origin).value, origin, origin)
    fields.pop("config", None)
    return fields


def _carry(fields: Mapping[str, Item]) -> tuple[list[Edit], list[Problem]]:
    """The edits that the fields amount to, and the fields that amount to none."""
    values = {name: _scalar(plain(item)) for name, item in fields.items()}
    edits: dict[str, Edit] = {}
    left: list[Problem] = []
    converter = Converter()
    for name, item in fields.items():
        where = item.key or item.origin
        if name == ENV and isinstance(item.value, dict):
            edits |= {
                f"{ENV}.{key}": Edit("set", f"{ENV}.{key}", wrap(str(plain(each)), each.origin))
                for key, each in item.value.items()
            }
            continue
        outcome = _outcome(name, values)
        if isinstance(outcome, str):
            left.append(Problem(name, f"{_shown(name, values[name])} is not carried over: {outcome}", where))
            continue
        for path, value in outcome.items():
            try:
                edits[path] = _edit(path, value, item, converter)
            except Unreadable as error:
                left.extend(error.problems)
    return list(edits.values()), left


def _outcome(name: str, values: Mapping[str, Any]) -> dict[str, Any] | str:
    field = FIELDS.get(name)
    if field is None:
        near = nearest(name, FIELDS)
        return f"TRL has no such field; did you mean '{near}'?" if near else "TRL has no such field"
    if field.turn is not None:
        return field.turn(values[name], values)
    return dict.fromkeys(field.to, values[name]) or field.why


def _edit(path: str, value: Any, item: Item, converter: Converter) -> Edit:
    """One leaf's edit, its value read as leniently as TRL reads it. Raises Unreadable."""
    where = item.key or item.origin
    leaf = find(path)
    value = _lenient(value, leaf)
    try:
        converter.leaf(leaf, value)
    except Exception as error:
        reason = "; ".join(str(failure) for _, failure in failures(error))
        message = f"{show_value(value)} is not carried over to {path}: expected {reason}"
        raise Unreadable(Problem(path, message, where)) from None
    edit = wrap(value, where)
    return Edit("set", path, localise(edit, leaf, os.getcwd()) if leaf is not None else edit)


def _lenient(value: Any, leaf: Leaf | None) -> Any:
    """Text as the leaf's type: TRL's arguments are parsed from text, whatever YAML made of them."""
    if leaf is None:
        return str(value)
    if leaf.is_tuple and not leaf.is_entries and isinstance(value, str):
        return [value]
    if (
        (leaf.is_flag or True in leaf.choices)
        and isinstance(value, str)
        and value.lower() in ("yes", "on", "no", "off")
    ):
        return value.lower() in ("yes", "on")
    if isinstance(value, str) and leaf.base in (int, float, bool):
        return Text(value)
    return value


def _scalar(value: Any) -> Any:
    """A text of a flag as the number or truth that it is; lists likewise."""
    if isinstance(value, list):
        return [_scalar(each) for each in value]
    if not isinstance(value, Text):
        return value
    words = {"true": True, "false": False, "none": None}
    if value.lower() in words:
        return words[value.lower()]
    for read in (int, float):
        try:
            return read(value)
        except ValueError:
            continue
    return str(value)


def _that_loads(edits: list[Edit]) -> tuple[list[Edit], list[Problem]]:
    """The edits without those that a rule refuses, or that nothing implements yet."""
    refused: list[Problem] = []
    while edits:
        try:
            resolve_layers([Layer(tuple(edits))])
        except ConfigError as error:
            bad = {problem.path.partition("[")[0]: problem for problem in error.problems}
            kept = [edit for edit in edits if edit.path not in bad]
            for edit in edits:
                if edit.path in bad:
                    reason = bad[edit.path].message
                    refused.append(Problem(edit.path, f"is not carried over: {reason}", edit.item.origin))
            if len(kept) == len(edits):  # a problem of no edit's own: nothing can be kept safely
                return [], [*refused, *error.problems]
            edits = kept
        else:
            break
    return edits, refused


def _render(path: str, edits: Sequence[Edit], left: Sequence[Problem], folder: str) -> str:
    """TOML, in the order of the schema; what was left out as comments at the top."""
    lines = [f"# Made by sftctl config import from {path}."]
    if left:
        lines += ["#", "# Not carried over:"]
        lines += [f"#   {_comment(problem)}" for problem in left]
    by_path = {edit.path: edit for edit in edits}
    for group in groups().values():
        body = list(_group_lines(group.name, by_path, folder))
        if body:
            lines += ["", f"[{group.name}]", *body]
    return "\n".join(lines) + "\n"


def _group_lines(group: str, edits: Mapping[str, Edit], folder: str) -> Iterator[str]:
    order = list(leaves())
    for path in sorted(edits, key=lambda each: order.index(each) if each in order else 0):
        if path.partition(".")[0] != group:
            continue
        edit = edits[path]
        leaf = find(path)
        value = secrets.mask(plain(edit.item), tuple(path.split(".", 1)))
        if leaf is not None and leaf.is_entries:
            entries = [_entry(each, folder) for each in value]
            yield f"{leaf.name} = [" + "".join(f"\n    {show_value(each)}," for each in entries) + "\n]"
        elif value is None:
            yield f'{path.partition(".")[2]} = "none"'
        else:
            yield f"{path.partition('.')[2]} = {show_value(_relative(value, leaf, folder))}"


def _entry(entry: dict[str, Any], folder: str) -> dict[str, Any]:
    local = isinstance(entry.get("path"), str) and os.path.isabs(entry["path"])
    return {**entry, "path": _from(entry["path"], folder)} if local else entry


def _relative(value: Any, leaf: Leaf | None, folder: str) -> Any:
    local = leaf is not None and leaf.is_path and isinstance(value, str) and os.path.isabs(value)
    return _from(value, folder) if local else value


def _from(path: str, folder: str) -> str:
    """A path as the file will say it: relative where it lies below the file, `./` in front."""
    inside = path.startswith(folder.rstrip(os.sep) + os.sep)
    return f"./{os.path.relpath(path, folder)}" if inside else path


def _line(problem: Problem) -> int:
    return problem.origin.line or 0 if problem.origin is not None else 0


def _comment(problem: Problem) -> str:
    line = f"line {problem.origin.line}: " if problem.origin is not None and problem.origin.line else ""
    return f"{line}{problem.path}: {problem.message}".replace("\n", " ")


def _shown(name: str, value: Any) -> str:
    return secrets.MASK if secrets.is_secret(("trl", name)) or (name.endswith("token") and value) else show_value(value)
