"""What a shell offers for a word: options, choices, recipes, files, in the spelling that was begun.

An empty answer makes the shell offer files by itself, with its own ways of showing folders, so files are
listed here only where recipes stand beside them. Shells cut words differently: bash hands `--loss-type=d` as
three words and `recipe:q` as three; zsh and fish as one. Both come out right.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sftctl.cli import leaf_options
from sftctl.cli.leaf_options import SUGAR
from sftctl.cli.switches import Switch, Usage
from sftctl.config.leaves import leaves

_HELP_COLUMNS = 60


class Candidate(NamedTuple):
    """A word and what it means. The names are those that Typer's shell classes read."""

    value: str
    help: str | None = None
    type: str = "plain"


def complete(usage: Usage, *, typed: Sequence[str], incomplete: str) -> list[Candidate]:
    """What may stand for `incomplete` after the words `typed`."""
    words = list(typed)
    if incomplete in ("=", ":"):
        words.append(incomplete)
        incomplete = ""
    if words[-1:] == [":"] and words[-2:-1] == ["recipe"]:
        return _matching(incomplete, _recipes())
    if words[-1:] == ["="]:
        return _values(usage, words[-2:-1], incomplete)
    if incomplete.startswith("-") and "=" in incomplete:
        option, _, value = incomplete.partition("=")
        return [Candidate(f"{option}={each.value}", each.help) for each in _values(usage, [option], value)]
    if incomplete.startswith("-"):
        return _options(usage, incomplete)
    if words and words[-1].startswith("-") and _needs_value(usage, words[-1]):
        return _values(usage, words[-1:], incomplete)
    return _words(usage, incomplete)


def _options(usage: Usage, incomplete: str) -> list[Candidate]:
    underscores = "_" in incomplete
    found = dict(_every_option(usage, full="." in incomplete, negated=incomplete.startswith("--no")))
    if underscores:
        found = {f"--{option[2:].replace('-', '_')}": help for option, help in found.items()}
    return [Candidate(option, _short(help)) for option, help in found.items() if option.startswith(incomplete)]


def _every_option(usage: Usage, *, full: bool, negated: bool) -> Iterator[tuple[str, str]]:
    for switch in usage.switches:
        yield switch.option, switch.help
    yield "--help", "Show what the command does and takes."
    if not usage.takes_leaves:
        return
    for option, (_, help) in SUGAR.items():
        yield option, help
    for leaf in leaves().values():
        option = leaf.options[0] if full else leaf.options[1]
        yield option, leaf.help
        if negated and leaf_options.can_be_true(leaf):
            yield f"--no-{option.removeprefix('--')}", leaf.help


def _needs_value(usage: Usage, option: str) -> bool:
    switch = _switch(usage, option)
    if switch is not None:
        return bool(switch.value or switch.choices)
    if not usage.takes_leaves:
        return False
    leaf = leaf_options.find(_key(option))
    return _spelt(option) in SUGAR or (leaf is not None and not leaf_options.can_be_true(leaf))


def _values(usage: Usage, options: Sequence[str], incomplete: str) -> list[Candidate]:
    """The values of an option where they can be listed; else nothing, which is files."""
    option = options[0] if options else ""
    switch = _switch(usage, option)
    if switch is not None:
        return _matching(incomplete, switch.choices or (switch.candidates() if switch.candidates else ()))
    if not usage.takes_leaves:
        return []
    if _spelt(option) == "--recipe":
        return _matching(incomplete, _recipes())
    if _spelt(option) == "--set":
        return _keys(incomplete)
    leaf = leaf_options.find(_key(option))
    return _matching(incomplete, leaf_options.values(leaf)) if leaf is not None else []


def _keys(incomplete: str) -> list[Candidate]:
    """`--set opt` -> `optim.learning_rate=`, ...; `--set ~opt` -> `~optim.learning_rate`."""
    before, after = ("~", "") if incomplete.startswith("~") else ("", "=")
    named = ((f"{before}{path}{after}", leaf.help) for path, leaf in leaves().items())
    return [Candidate(key, _short(help)) for key, help in named if key.startswith(incomplete)]


def _words(usage: Usage, incomplete: str) -> list[Candidate]:
    words = usage.words
    if words is None:
        return []
    listed = _matching(incomplete, words.candidates()) if words.candidates else []
    if words.recipes:
        listed += _matching(incomplete, tuple(f"recipe:{name}" for name in _recipes()))
    if listed and words.recipes:
        listed += [Candidate(path) for path in sorted(glob.glob(f"{glob.escape(incomplete)}*"))]
    return listed


def _recipes() -> tuple[str, ...]:
    from sftctl.config.recipes import names  # only where recipes are offered

    return names()


def _matching(incomplete: str, listed: Sequence[str]) -> list[Candidate]:
    return [Candidate(word) for word in listed if word.startswith(incomplete)]


def _switch(usage: Usage, option: str) -> Switch | None:
    for switch in usage.switches:
        if _spelt(option) == switch.option or (switch.short and option == f"-{switch.short}"):
            return switch
    return None


def _spelt(option: str) -> str:
    return option[:2] + option[2:].replace("_", "-")


def _key(option: str) -> str:
    return option[2:].replace("-", "_")


def _short(help: str) -> str:
    """One line for the shell, without brackets, which Typer would read as markup."""
    line = help.replace("[", "(").replace("]", ")")
    return line if len(line) <= _HELP_COLUMNS else line[: _HELP_COLUMNS - 1] + "…"
