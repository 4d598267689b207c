"""What a command takes beside the leaves of the schema: its words and its own switches, as plain values.

They are data and not Typer parameters because Typer (from 0.29) imports pydantic for the first parameter it
converts, which alone costs more than the whole start-up of `sftctl config show`; and named tuples, since a frozen
dataclass takes four times as long to make. The words after the command are strings here; the command gives them
meaning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

Candidates = Callable[[], tuple[str, ...]]
"""Values that a shell may offer; called only when someone presses the tab key."""


class Switch(NamedTuple):
    """An option of one command, as `--format FORMAT`. Without a `value` it is on or off."""

    name: str
    help: str
    value: str | None = None
    choices: tuple[str, ...] = ()
    short: str | None = None
    many: bool = False
    candidates: Candidates | None = None

    @property
    def option(self) -> str:
        return f"--{self.name}"

    @property
    def label(self) -> str:
        """`-o, --output PATH`, as the help shows it."""
        short = f"-{self.short}, " if self.short else ""
        value = "|".join(self.choices) if self.choices else self.value
        return f"{short}{self.option}" + (f" {value}" if value else "")


class Words(NamedTuple):
    """The words of a command that are not options: how many, and what they are called in help and errors."""

    name: str
    help: str
    least: int = 0
    most: int | None = None
    recipes: bool = False
    candidates: Candidates | None = None
    may_be_options: bool = False
    """Whether an unknown option is a word: `config explain --learning-rate` asks about it."""

    @property
    def label(self) -> str:
        """`[FILE…]`, `A B`, `[KEY]`, as the usage line shows it."""
        dots = "…" if self.most is None else ""
        return f"{self.name}{dots}" if self.least else f"[{self.name}{dots}]"


class Example(NamedTuple):
    """A command line that does something, and what."""

    line: str
    what: str


class Usage(NamedTuple):
    """All that a command takes, for the parser, the help and the completion alike."""

    summary: str
    about: str = ""
    words: Words | None = None
    switches: tuple[Switch, ...] = ()
    examples: tuple[Example, ...] = ()
    takes_leaves: bool = False
    lists_leaves: bool = False
