"""A command, and a group of commands whose modules are imported when one of them is called.

Plain objects without Typer. Importing Typer costs three times what starting Python does, and from 0.29 on it
builds a pydantic adapter for each parameter; a call from the shell needs neither, since options are read from
the schema (`options.py`) and help is drawn from it (`help.py`). `typer_app.py` puts the same objects behind
Typer for shells that complete and for programs that embed the app.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from sftctl.cli.switches import Example, Usage
from sftctl.cli.terminal import write
from sftctl.errors import ConfigError, Problem

if TYPE_CHECKING:
    from sftctl.cli.options import Invocation

HELP_OPTIONS = ("--help", "-h")
FILE_SUFFIXES = (".toml", ".yaml", ".yml", ".json")


class Command:
    """`usage` says what it takes, `run` does it and returns an exit code (None is 0)."""

    def __init__(self, name: str, usage: Usage, run: Callable[[Invocation], int | None]) -> None:
        self.name, self.usage, self.run = name, usage, run

    def call(self, words: Sequence[str], path: str) -> int:
        """Read `words` and run; `path` is how the command was called (`sftctl config show`). The exit code."""
        if asks_for_help(words):
            from sftctl.cli.help import command_help  # the text is needed only here

            write(command_help(path, self.usage))
            return 0
        return self.run(self.read(words, path)) or 0

    def read(self, words: Sequence[str], path: str) -> Invocation:
        """The words as an invocation. What is wrong with them is raised, or left to the report of resolving."""
        from sftctl.cli.options import parse  # not for the help of a group, or its version

        invocation = parse(words, self.usage, command=path)
        if invocation.problems and not self.usage.takes_leaves:
            raise ConfigError(*invocation.problems)
        if invocation.problems:
            from sftctl.cli.resolving import registers_groups  # only where an option is not known

            if registers_groups(invocation.words):
                invocation = parse(words, self.usage, command=path)
        return invocation


class Entry(NamedTuple):
    """A command in a group: the module that holds it as `command`, and the line that lists it."""

    module: str
    summary: str


class GroupOption(NamedTuple):
    """An option of a group itself, which does something and ends: `--version`."""

    help: str
    act: Callable[[], None]


class Group:
    """Commands by their names, with a text for someone who asks what there is."""

    def __init__(
        self,
        name: str,
        about: str,
        entries: Mapping[str, Entry],
        *,
        examples: tuple[Example, ...] = (),
        options: Mapping[str, GroupOption] | None = None,
    ) -> None:
        self.name, self.about, self.entries, self.examples = name, about, entries, examples
        self.options = options or {}

    def call(self, words: Sequence[str], path: str) -> int:
        """Hand `words` to the command that the first of them names. The exit code."""
        if not words or words[0] in HELP_OPTIONS:
            from sftctl.cli.help import group_help  # the text is needed only here

            write(group_help(path, self))
            return 0
        name, *rest = words
        if name in self.options:
            self.options[name].act()
            return 0
        if name not in self.entries:
            raise ConfigError(self._unknown(name, path))
        return self.command(name).call(rest, f"{path} {name}")

    def command(self, name: str) -> Command | Group:
        found = import_module(self.entries[name].module).command
        assert isinstance(found, (Command, Group)), f"{self.entries[name].module} holds a command"
        return found

    def _unknown(self, word: str, path: str) -> Problem:
        from sftctl.config.nearest import nearest  # only a mistake needs it

        kind = "option" if word.startswith("-") else "command"
        found = nearest(word, [*self.entries, *self.options])
        help = f"did you mean '{found}'?" if found else f"'{path} --help' lists the commands"
        if "train" in self.entries and word.endswith(FILE_SUFFIXES):
            help = f"to train with that file: {path} train {word}"
        return Problem(word, f"unknown {kind} of `{path}`", help=help)


def asks_for_help(words: Sequence[str]) -> bool:
    before = words[: list(words).index("--")] if "--" in words else words
    return any(word in before for word in HELP_OPTIONS)
