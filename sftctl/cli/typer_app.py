"""The same commands behind Typer: for shells that complete, and for programs that embed or test the app.

A `TyperGroup` and a `TyperCommand` whose parameters are never built: reading, help and completion, where Typer
would ask its parameters, go to `command.py`, `help.py` and `completion.py`, which ask the schema. Works on
Typer 0.25 (on click) to 0.29 (with a click of its own), by what they have in common: contexts, dispatch, and the
completion protocol of their shell scripts. Contexts are typed as Any, since their class differs by version.
"""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from sftctl.cli.command import Command, Group
from sftctl.errors import SftctlError

_TYPED = "sftctl.typed"
"""Key in a context's meta: the words before the one that is being completed."""


class LazyCommand(TyperCommand):
    """A command of ours as one of Typer's."""

    def __init__(self, command: Command) -> None:
        super().__init__(command.name, help=command.usage.summary, add_help_option=False, rich_markup_mode=None)
        self._command = command

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[_TYPED] = list(args)
        ctx._opt_prefixes = set()  # else `--option=va` is completed without its `--option=`
        return []

    def get_params(self, ctx: Any) -> list[Any]:
        return []

    def invoke(self, ctx: Any) -> Any:
        raise typer.Exit(_answer(self._command, ctx.meta[_TYPED], ctx.command_path))

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        from sftctl.cli.completion import complete  # only a shell needs it

        return list(complete(self._command.usage, typed=ctx.meta[_TYPED], incomplete=incomplete))


class LazyGroup(TyperGroup):
    """A group of ours as one of Typer's. Its commands are imported when they are asked for."""

    group: Group

    def __init__(self, **settings: Any) -> None:
        self.group = settings.pop("group", None) or _root()
        super().__init__(**{**settings, "add_help_option": False, "rich_markup_mode": None})

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        answered = not args or args[0] not in self.group.entries
        if answered and not ctx.resilient_parsing:  # help, an option of the group, or a word that is nothing
            raise typer.Exit(_answer(self.group, args, ctx.command_path))
        return super().parse_args(ctx, args)

    def get_params(self, ctx: Any) -> list[Any]:
        return []

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.group.entries)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.group.entries:
            return None
        found = self.group.command(cmd_name)
        if isinstance(found, Group):
            return LazyGroup(name=found.name, help=found.about, group=found)
        return LazyCommand(found)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        from sftctl.cli.completion import Candidate  # only a shell needs it

        named = {name: entry.summary for name, entry in self.group.entries.items()}
        if incomplete.startswith("-"):
            named = {name: option.help for name, option in self.group.options.items()} | {"--help": "Show the help."}
        return [Candidate(name, help) for name, help in named.items() if name.startswith(incomplete)]


def _answer(called: Command | Group, words: list[str], path: str) -> int:
    """The exit code of a call; what the user has to mend is reported here, since Typer knows only its own errors."""
    try:
        return called.call(words, path)
    except SftctlError as error:
        from sftctl.cli.app import report  # which imports this module where it needs it

        return report(error)


def _root() -> Group:
    from sftctl.cli.app import ROOT  # which imports this module where it needs it

    return ROOT


app = typer.Typer(cls=LazyGroup, add_completion=False, rich_markup_mode=None)


@app.callback()
def sftctl() -> None:
    """Supervised fine-tuning from one typed configuration, with proof of what was trained."""


def complete(program: str) -> int:
    """Answer a shell as Typer's scripts ask it to, through the environment. Returns the exit code it waits for."""
    from typer.completion import get_completion_inspect_parameters  # which registers Typer's shells

    get_completion_inspect_parameters()
    return _leave_with(lambda: get_command(app).main([], prog_name=program))


def install_completion(program: str) -> None:
    """Write the completion script of the shell that called us where that shell finds it."""
    from typer.completion import install_callback

    with typer.Context(get_command(app), info_name=program) as ctx:
        _leave_with(lambda: install_callback(ctx, None, True))  # type: ignore[arg-type]  # it looks at no parameter


def show_completion(program: str) -> None:
    """Print that script."""
    from typer.completion import show_callback

    with typer.Context(get_command(app), info_name=program) as ctx:
        _leave_with(lambda: show_callback(ctx, None, True))  # type: ignore[arg-type]  # it looks at no parameter


def _leave_with(act: Any) -> int:
    """Typer ends the process when it has answered; we go on to our own end."""
    try:
        act()
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else 0
    return 0
