"""Typer's command and group, fed from the schema instead of from function signatures.

A `TyperCommand` builds a parameter object for each option, and from Typer 0.29 a pydantic adapter for each
value; for a hundred leaves that is more than half a second before anything is said. `Command` keeps Typer's
contexts, dispatch and completion protocol, and replaces the three places where it asks its parameters:
reading the arguments, drawing the help, completing a word. `Commands` imports a command's module when that
command is asked for. Works on Typer 0.25 (on click) to 0.29 (with a click of its own), by their public parts:
`TyperCommand`, `TyperGroup`, `typer.Exit`.

Contexts are typed as Any: their class is click's or Typer's own, by version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

from sftctl.cli.options import HELP_OPTIONS, Invocation, parse
from sftctl.cli.switches import Example, Usage
from sftctl.cli.terminal import write
from sftctl.errors import ConfigError, Problem

_TYPED = "sftctl.typed"
"""Key in a context's meta: the words before the one that is being completed."""


class Command(TyperCommand):
    """`usage` says what it takes, `run` does it and returns an exit code (None is 0)."""

    def __init__(self, name: str, usage: Usage, run: Callable[[Invocation], int | None]) -> None:
        super().__init__(name, callback=run, help=usage.summary, add_help_option=False, rich_markup_mode=None)
        self.usage = usage

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:  # the shell asks for completions
            ctx.meta[_TYPED] = list(args)
            ctx._opt_prefixes = set()  # else `--option=va` reaches us without its `--option=`
            return []
        if asks_for_help(args):
            from sftctl.cli.help import command_help  # the text is needed only here

            write(command_help(ctx.command_path, self.usage))
            raise typer.Exit(0)
        invocation = parse(args, self.usage, command=ctx.command_path)
        if invocation.problems and not self.usage.takes_leaves:
            raise ConfigError(*invocation.problems)
        if invocation.problems:
            from sftctl.cli.resolving import registers_groups  # only where an option is not known

            if registers_groups(invocation.words):
                invocation = parse(args, self.usage, command=ctx.command_path)
        ctx.params["invocation"] = invocation
        return []

    def get_params(self, ctx: Any) -> list[Any]:
        return []

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        from sftctl.cli.completion import complete  # only a shell needs it

        return list(complete(self.usage, typed=ctx.meta[_TYPED], incomplete=incomplete))


@dataclass(frozen=True, slots=True)
class Entry:
    """A command in a group: the module that holds it as `command`, and the line that lists it."""

    module: str
    summary: str


class Commands(TyperGroup):
    """A group whose commands are found by name in `entries`, each imported when it is first asked for."""

    entries: ClassVar[Mapping[str, Entry]] = {}
    examples: ClassVar[tuple[Example, ...]] = ()
    options: ClassVar[Mapping[str, tuple[str, Callable[[Any], None]]]] = {}
    """Options of the group itself, each with its help and what it does."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "add_help_option": False, "rich_markup_mode": None})

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:
            self._answer(ctx, args)
        return super().parse_args(ctx, args)

    def _answer(self, ctx: Any, args: list[str]) -> None:
        """Whatever can be said without a command: help, the version, completion; or that there is no such."""
        if not args or args[0] in HELP_OPTIONS:
            from sftctl.cli.help import group_help  # the text is needed only here

            write(group_help(ctx.command_path, self))
            raise typer.Exit(0)
        if args[0] in self.options:
            self.options[args[0]][1](ctx)
            raise typer.Exit(0)
        if args[0] not in self.entries:
            raise ConfigError(self._unknown(ctx.command_path, args[0]))

    def _unknown(self, path: str, word: str) -> Problem:
        from sftctl.config.nearest import nearest  # only a mistake needs it

        kind = "option" if word.startswith("-") else "command"
        found = nearest(word, [*self.entries, *self.options])
        help = f"did you mean '{found}'?" if found else f"'{path} --help' lists the commands"
        if kind == "command" and path == "sftctl" and word.endswith((".toml", ".yaml", ".yml", ".json")):
            help = f"to train with that file: {path} train {word}"
        return Problem(word, f"unknown {kind} of `{path}`", help=help)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.entries)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        entry = self.entries.get(cmd_name)
        return import_module(entry.module).command if entry is not None else None

    def get_params(self, ctx: Any) -> list[Any]:
        return []

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        from sftctl.cli.completion import Candidate  # only a shell needs it

        named = {name: entry.summary for name, entry in self.entries.items()}
        if incomplete.startswith("-"):
            named = {name: help for name, (help, _) in self.options.items()} | {"--help": "Show this text."}
        return [Candidate(name, help) for name, help in named.items() if name.startswith(incomplete)]


def asks_for_help(args: list[str]) -> bool:
    before = args[: args.index("--")] if "--" in args else args
    return any(word in before for word in HELP_OPTIONS)
