"""The grid of `sftctl sweep FILE --over optim.learning_rate=1e-5,2e-5 --over sft.loss_type=nll,dft`.

A point of the grid is a few assignments, added to those of the command line, so that a value is read, checked
and shown like any option's. A value is split at commas that stand outside brackets and quotes.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence

import attrs

from sftctl.config.resolve import Resolved, resolve
from sftctl.config.sources.items import Lines
from sftctl.config.sources.options import Assignment
from sftctl.errors import ConfigError, Problem

SPELLING = "--over"


@attrs.frozen
class Point:
    """One run of a sweep: what was set for it, in words (`learning_rate=1e-5`), and the configuration."""

    settings: Mapping[str, str]
    resolved: Resolved

    @property
    def name(self) -> str:
        """`learning_rate=1e-5,loss_type=dft`: a name for its run directory."""
        return ",".join(f"{path.rpartition('.')[2]}={_file_name(text)}" for path, text in self.settings.items())


def points(
    files: Sequence[str | os.PathLike[str]],
    over: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    options: Sequence[Assignment] = (),
    plugins: Sequence[str] = (),
) -> tuple[Point, ...]:
    """Every combination, the last `--over` changing fastest, all resolved. Raises ConfigError with every problem."""
    axes, problems = _axes(over)
    found: list[Point] = []
    for values in itertools.product(*axes.values()):
        settings = dict(zip(axes, values, strict=True))
        added = [Assignment(SPELLING, "set", None, f"{path}={text}") for path, text in settings.items()]
        try:
            resolved = resolve(files, env=env, options=[*options, *added], plugins=plugins)
        except ConfigError as error:
            problems += [each for each in error.problems if each not in problems]
        else:
            found.append(Point(settings, resolved))
    if problems:
        raise ConfigError(*problems)
    return tuple(found)


def _axes(over: Sequence[str]) -> tuple[dict[str, list[str]], list[Problem]]:
    axes: dict[str, list[str]] = {}
    problems: list[Problem] = []
    for text in over:
        shown = f"{SPELLING} {text}"
        origin = Lines(shown, SPELLING, "set").origin(len(SPELLING) + 1, len(shown))
        path, equals, values = text.partition("=")
        path = path.strip()
        if not equals or not path or not values.strip():
            advice = f"write {SPELLING} PATH=VALUE,VALUE, as in {SPELLING} optim.learning_rate=1e-5,2e-5"
            problems.append(Problem("", f"'{text}' is no list of values to go over", origin, advice))
        elif path in axes:
            problems.append(Problem(path, f"is given twice by {SPELLING}", origin, "put all its values into one"))
        else:
            axes[path] = list(dict.fromkeys(split(values)))
    return axes, problems


def split(text: str) -> Iterator[str]:
    """The values of `1e-5,2e-5` or `[0.9,0.95],[0.8,0.99]`: split at commas outside brackets and quotes."""
    depth, quote, start = 0, "", 0
    for position, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == "," and depth == 0:
            yield text[start:position].strip()
            start = position + 1
    yield text[start:].strip()


def _file_name(text: str) -> str:
    """A value as a part of a folder's name."""
    return "".join(character if character.isalnum() or character in "._+-" else "-" for character in text)
