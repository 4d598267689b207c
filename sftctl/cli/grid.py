"""The grid of a sweep: `--over KEY=VALUE,VALUE`, several times, as one set of assignments a run.

--over optim.learning_rate=1e-5,2e-5 --over sft.loss_type=nll,dft     4 runs, the last key changing fastest
--over optim.betas=[0.9,0.95],[0.9,0.999]                             commas inside brackets do not part
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from sftctl.cli import leaf_options
from sftctl.config.sources.options import Assignment
from sftctl.errors import Origin, Problem

OPTION = "--over"


@dataclass(frozen=True, slots=True)
class Axis:
    """A key and the values that it takes in turn, as they were typed."""

    path: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """One run of the grid: a value for each key."""

    settings: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return ", ".join(f"{path}={value}" for path, value in self.settings)

    @property
    def suffix(self) -> str:
        """For the name of a run directory: `learning_rate-1e-5-loss_type-nll`."""
        text = "-".join(f"{path.rpartition('.')[2]}-{value}" for path, value in self.settings)
        return re.sub(r"[^A-Za-z0-9._-]+", "_", text)

    def assignments(self) -> tuple[Assignment, ...]:
        return tuple(Assignment(OPTION, "set", None, f"{path}={value}") for path, value in self.settings)


def read_axes(texts: Sequence[str]) -> tuple[list[Axis], list[Problem]]:
    """The axes of `--over` texts, and what is wrong with them."""
    axes: list[Axis] = []
    problems: list[Problem] = []
    for text in texts:
        path, equals, listed = text.partition("=")
        leaf = leaf_options.find(path.strip().replace("-", "_"))
        values = tuple(split(listed))
        if not equals or not all(values) or not values:
            help = f"write {OPTION} KEY=VALUE,VALUE, as in {OPTION} optim.learning_rate=1e-5,2e-5"
            problems.append(Problem(OPTION, f"'{text}' gives no values to go over", Origin("option", OPTION), help))
            continue
        axis = Axis(leaf.path if leaf is not None else path.strip(), values)
        if any(axis.path == other.path for other in axes):
            help = f"give all its values in one {OPTION}"
            problems.append(Problem(axis.path, f"is given twice, by {OPTION}", Origin("option", OPTION), help))
        axes.append(axis)
    return axes, problems


def points(axes: Sequence[Axis]) -> Iterator[Point]:
    """Every combination, the last axis changing fastest."""
    for values in product(*(axis.values for axis in axes)):
        yield Point(tuple((axis.path, value) for axis, value in zip(axes, values, strict=True)))


def split(text: str) -> Iterator[str]:
    """`1e-5, 2e-5` -> 1e-5 and 2e-5; a comma inside brackets, braces or quotes belongs to its value."""
    part, depth, quote = "", 0, ""
    for character in text:
        if character == "," and not depth and not quote:
            yield part.strip()
            part = ""
            continue
        part += character
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        else:
            depth += (character in "[{") - (character in "]}")
    yield part.strip()
