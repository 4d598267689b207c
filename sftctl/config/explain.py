"""All that is known about a setting: help, type, default, every spelling, the rules it takes part in.

A key is found by its path, its short name, an option, an environment variable, a group's name, or TRL's.
"""

from __future__ import annotations

from typing import Any

import attrs

from sftctl.config import rules
from sftctl.config.leaves import ENV, Leaf, by_flat, entry_leaves, find, groups, leaves, show_choice
from sftctl.config.show import show
from sftctl.config.values import show_value
from sftctl.errors import ConfigError, Problem

LISTED = "'sftctl config explain' lists every setting"


@attrs.frozen
class Explanation:
    """A leaf, ready to be drawn. `spellings` are (source, how it is written there)."""

    path: str
    help: str
    type: str
    unit: str | None
    default: str
    choices: tuple[str, ...]
    limit: str | None
    spellings: tuple[tuple[str, str], ...]
    rules: tuple[str, ...]
    fields: tuple[tuple[str, str, str], ...] = ()


@attrs.frozen
class GroupOverview:
    """A group: its help, and (path, type, default, help) of its leaves."""

    name: str
    help: str
    leaves: tuple[tuple[str, str, str, str], ...]


def explain(key: str) -> Explanation | GroupOverview:
    """What a key is. Raises ConfigError with a suggestion for one that is nothing."""
    word = key.strip().partition("=")[0]
    if word in groups():
        return overview(word)
    leaf = _find(word)
    if leaf is not None:
        return of_leaf(leaf)
    from sftctl.config import suggest  # only on the way to an error

    raise ConfigError(Problem(word, "there is no such setting", help=suggest.for_path(_plain(word)) or LISTED))


def overview(name: str) -> GroupOverview:
    """A group and its leaves."""
    group = groups()[name]
    rows = tuple((leaf.path, leaf.type_text, _default(leaf), leaf.help) for leaf in group.leaves)
    return GroupOverview(group.name, group.help, rows)


def everything() -> tuple[GroupOverview, ...]:
    """Every group: what `config explain` says without a key."""
    return tuple(overview(name) for name in groups())


def of_leaf(leaf: Leaf) -> Explanation:
    """A leaf's explanation; of an array of tables with the fields of an entry."""
    fields = (
        tuple((each.name, each.type_text, each.help) for each in entry_leaves(leaf).values()) if leaf.is_entries else ()
    )
    return Explanation(
        path=leaf.path,
        help=leaf.help,
        type=leaf.type_text,
        unit=leaf.unit,
        default=_default(leaf),
        choices=tuple(show_choice(each) for each in leaf.choices) + leaf.words,
        limit=str(leaf.limit) if leaf.limit is not None else None,
        spellings=_spellings(leaf),
        rules=rules.related(leaf.path),
        fields=fields,
    )


def _spellings(leaf: Leaf) -> tuple[tuple[str, str], ...]:
    example = _example(leaf)
    inline = show_value(example)
    plain = show_choice(example) if isinstance(example, (str, bool, int, float)) else inline
    long, short = leaf.options
    if leaf.is_flag:
        options = [f"{short} / --no-{short.removeprefix('--')}", f"{long} / --no-{long.removeprefix('--')}"]
    elif leaf.is_tuple:
        repeated = list(example) if isinstance(example, (list, tuple)) and not leaf.is_entries else ["rows.jsonl"]
        options = [" ".join(f"{each} {value}" for value in repeated) for each in (short, long)]
    else:
        quoted = f"'{plain}'" if leaf.is_table else plain
        options = [f"{short} {quoted}", f"{long} {quoted}"]
    options = list(dict.fromkeys(options))
    is_words = isinstance(example, (list, tuple)) and not leaf.is_entries
    words = ",".join(str(each) for each in example) if is_words else plain
    return (
        ("TOML", f"[{leaf.group}] {leaf.name} = {inline}"),
        ("environment", f"{leaf.env}={words}"),
        *(("option", each) for each in options),
        ("--set", f"--set '{leaf.path}={inline}'"),
        ("Python", f'sftctl.load("run.toml", overrides={{"{leaf.path}": {_python(example)}}})'),
    )


def _example(leaf: Leaf) -> Any:
    """A value to show a spelling with: the default, or one of the type where that is none or empty."""
    if leaf.is_entries:
        return [{"path": "rows.jsonl"}]
    if leaf.is_table:
        return {"name": "value"}
    if leaf.default not in (None, ()) and leaf.default is not attrs.NOTHING:
        return leaf.default
    if leaf.choices:
        return [leaf.choices[0]] if leaf.is_tuple else leaf.choices[0]
    samples: dict[object, object] = {bool: True, int: 8, float: 0.1, str: "name"}
    return ["a", "b"] if leaf.is_tuple else samples[leaf.base]


def _python(value: Any) -> str:
    return repr(list(value)) if isinstance(value, tuple) else repr(value)


def _default(leaf: Leaf) -> str:
    return "none, it must be given" if leaf.required else show(leaf.default, leaf.path)


def _plain(word: str) -> str:
    """An option or a variable as a path would be written."""
    if word.upper().startswith("SFTCTL_"):
        return word[len("SFTCTL_") :].lower().replace("__", ".", 1)
    return word.removeprefix("--").replace("-", "_") if word.startswith("--") else word


def _find(word: str) -> Leaf | None:
    plain = _plain(word)
    for each in (word, plain, plain.replace("-", "_"), plain.removeprefix("no_")):
        found = find(each) or by_flat().get(each)
        if found is not None:
            return found
    named = [leaf for leaf in leaves().values() if leaf.name == plain]
    return named[0] if len(named) == 1 and plain != ENV else None
