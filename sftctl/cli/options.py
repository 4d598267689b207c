"""A command line as words, assignments to leaves, and switches; what is wrong with it as problems, all at once.

    train a.toml --learning-rate 1e-4 b.toml --no-packing --set optim.betas=[0.9,0.95] --dry-run
          ^word  ^assignment          ^word  ^assignment  ^assignment                  ^switch

Every leaf has two spellings (`--optim.learning-rate`, `--learning-rate`), each with `-` or `_`. Options stand
before, between or after words. Nothing is abbreviated: an option that only begins like another is unknown, so
that a command line means the same after a new leaf has come. Values are not interpreted here, only carried;
`config/sources/options.py` gives them types.

A leaf that can be true needs no value. It takes the next word as its value only when that word cannot be a
file: `--packing false`, `--gradient-checkpointing selective`, and `--packing maybe`, which is then an error
about `maybe` and not about a missing file.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sftctl.cli import leaf_options
from sftctl.cli.leaf_options import SUGAR
from sftctl.cli.switches import Switch, Usage
from sftctl.config.leaves import Leaf
from sftctl.config.sources.options import Assignment
from sftctl.errors import Origin, Problem

_NUMBER = re.compile(r"-(\d|\.\d|inf\b|nan\b)")
_FILE_LIKE = re.compile(r"[/\\]|^recipe:|\.(toml|ya?ml|json)$")


class Invocation(NamedTuple):
    """A command line, read. `switches` holds what was given: True, a string, or a tuple of strings."""

    words: tuple[str, ...]
    assignments: tuple[Assignment, ...]
    switches: Mapping[str, bool | str | tuple[str, ...]]
    problems: tuple[Problem, ...]
    line: tuple[str, ...] = ()
    """The whole command line as it was typed, for the record."""

    def on(self, name: str) -> bool:
        return bool(self.switches.get(name, False))

    def text(self, name: str, default: str = "") -> str:
        value = self.switches.get(name, default)
        assert isinstance(value, str), f"--{name} is a switch with one value"
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.switches.get(name, ())
        assert isinstance(value, tuple), f"--{name} is a switch that repeats"
        return value


def parse(arguments: Sequence[str], usage: Usage, *, command: str) -> Invocation:
    """Read `arguments` as `usage` says. Never raises for what a user typed: see `Invocation.problems`."""
    reader = _Reader(deque(arguments), usage, command)
    reader.read()
    line = (*command.split(), *arguments)
    return Invocation(tuple(reader.words), tuple(reader.assignments), reader.switches, tuple(reader.problems), line)


class _Reader:
    """The command line that is left to read, and what has been read of it."""

    def __init__(self, rest: deque[str], usage: Usage, command: str) -> None:
        self.rest, self.usage, self.command = rest, usage, command
        self.words: list[str] = []
        self.assignments: list[Assignment] = []
        self.switches: dict[str, bool | str | tuple[str, ...]] = {}
        self.problems: list[Problem] = []

    def read(self) -> None:
        while self.rest:
            token = self.rest.popleft()
            if token == "--":
                self.words.extend(self.rest)
                break
            if token.startswith("--"):
                self._long(token)
            elif len(token) > 1 and token[0] == "-" and not _NUMBER.match(token):
                self._short(token)
            else:
                self.words.append(token)
        self._count_words()

    def _long(self, token: str) -> None:
        typed, equals, text = token.partition("=")
        value = text if equals else None
        key = typed[2:].replace("-", "_")
        for take in (self._switch, self._sugar, self._leaf, self._negated):
            if take(typed, key, value):
                return
        if self.usage.words and self.usage.words.may_be_options:
            self.words.append(typed)
            return
        self._unknown(typed)
        if value is None and self.rest and not self.rest[0].startswith("-") and not _may_be_file(self.rest[0]):
            self.rest.popleft()  # what was meant as its value is no missing file too

    def _short(self, token: str) -> None:
        for switch in self.usage.switches:
            if switch.short and token.startswith(f"-{switch.short}"):
                attached = token[2:].removeprefix("=")
                self._take_switch(switch, token[:2], attached or None)
                return
        self._unknown(token)

    # Each of these returns whether the option was its own, problem or not.

    def _switch(self, typed: str, key: str, value: str | None) -> bool:
        for switch in self.usage.switches:
            if switch.name.replace("-", "_") == key:
                self._take_switch(switch, typed, value)
                return True
        return False

    def _take_switch(self, switch: Switch, typed: str, value: str | None) -> None:
        if switch.value is None and not switch.choices:
            if value is not None:
                self._problem(typed, f"takes no value, got '{value}'", f"write only '{switch.option}'")
            self.switches[switch.name] = True
            return
        text = value if value is not None else self._next(typed, switch.value or "VALUE")
        if text is None:
            return
        if switch.choices and text not in switch.choices:
            self._problem(typed, f"'{text}' is none of its choices", f"choose from {', '.join(switch.choices)}")
        elif switch.many:
            self.switches[switch.name] = (*self._given(switch.name), text)
        elif switch.name in self.switches:
            self._problem(typed, "given twice", "give it once")
        else:
            self.switches[switch.name] = text

    def _given(self, name: str) -> tuple[str, ...]:
        value = self.switches.get(name, ())
        assert isinstance(value, tuple)
        return value

    def _sugar(self, typed: str, key: str, value: str | None) -> bool:
        """`--set`, `--recipe`, `--dataset`, `--eval-dataset`: options that are no leaf's own."""
        option = f"--{key.replace('_', '-')}"
        if not self.usage.takes_leaves or option not in SUGAR:
            return False
        text = value if value is not None else self._next(typed, SUGAR[option][0])
        if text is None:
            pass
        elif option == "--recipe":
            self.words.append(f"recipe:{text}")
        elif option == "--set":
            self.assignments.append(Assignment(typed, "set", None, text))
        else:
            leaf = "data.datasets" if option == "--dataset" else "data.eval_datasets"
            self.assignments.append(Assignment(typed, "option", leaf, text))
        return True

    def _leaf(self, typed: str, key: str, value: str | None) -> bool:
        leaf = leaf_options.find(key) if self.usage.takes_leaves else None
        if leaf is None:
            return False
        if leaf_options.can_be_true(leaf):
            self._assign(leaf, typed, value if value is not None else self._next_of_flag(leaf))
        else:
            text = value if value is not None else self._next(typed, leaf_options.metavar(leaf))
            if text is not None:
                self._assign(leaf, typed, text)
        return True

    def _negated(self, typed: str, key: str, value: str | None) -> bool:
        leaf = leaf_options.find_negated(key) if self.usage.takes_leaves else None
        if leaf is None:
            return False
        if value is not None:
            self._problem(typed, f"takes no value, got '{value}'", f"write '{leaf.options[1]}={value}'")
        else:
            self._assign(leaf, typed, "false")
        return True

    def _assign(self, leaf: Leaf, typed: str, text: str) -> None:
        self.assignments.append(Assignment(typed, "option", leaf.path, text))

    def _next(self, typed: str, metavar: str) -> str | None:
        """The word after an option that needs one; a number may be negative, another option is no value."""
        if self.rest and (not self.rest[0].startswith("-") or self.rest[0] == "-" or _NUMBER.match(self.rest[0])):
            return self.rest.popleft()
        help = f"write '{typed}={self.rest[0]}' if that is the value" if self.rest else f"write '{typed} {metavar}'"
        self._problem(typed, "needs a value", help)
        return None

    def _next_of_flag(self, leaf: Leaf) -> str:
        if not self.rest or self.rest[0].startswith("-"):
            return "true"
        word = self.rest[0]
        if word.lower() in leaf_options.values(leaf) or not _may_be_file(word):
            return self.rest.popleft()
        return "true"

    def _unknown(self, typed: str) -> None:
        self.problems.append(leaf_options.unknown(typed, self.usage, command=self.command))

    def _problem(self, typed: str, message: str, help: str | None = None) -> None:
        self.problems.append(Problem(typed, message, Origin("option", typed), help))

    def _count_words(self) -> None:
        words = self.usage.words
        least, most = (words.least, words.most) if words else (0, 0)
        see = f"see '{self.command} --help'"
        if most is not None and len(self.words) > most:
            self.problems.append(Problem(self.words[most], f"`{self.command}` takes no further word", help=see))
        elif len(self.words) < least:
            assert words is not None
            self.problems.append(Problem("", f"`{self.command}` needs {words.name}: {words.help}", help=see))


def _may_be_file(word: str) -> bool:
    """Whether a word that could be a value or a file is a file: it is there, or is spelt like one."""
    return bool(_FILE_LIKE.search(word)) or os.path.exists(word)
