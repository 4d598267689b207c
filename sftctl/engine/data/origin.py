"""What a source is: as the configuration says it, opened, and a place in it to go on from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sftctl.engine.data.readers import Line
from sftctl.errors import DataError, Origin, Problem


class Place(NamedTuple):
    """Between two rows of a source: `row` of them lie before, in this pass over it and `passes` whole ones.

    The next row is in file `file`, at `offset` (`Line.after`; what a stream of `datasets` says of itself), after
    line `line`. Plain data, so that a checkpoint can hold it.
    """

    row: int = 0
    file: int = 0
    offset: Any = 0
    line: int = 0
    passes: int = 0


@dataclass(frozen=True, slots=True)
class Source:
    """One source as the configuration says it: the fields of `data.datasets[…]`, by the same names."""

    path: str
    name: str | None = None
    data_dir: str | None = None
    data_files: tuple[str, ...] | None = None
    split: str = "train"
    format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    fraction: float | None = None
    weight: float | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class OpenSource:
    """A source that is there. `lines()` reads it from the start; `fingerprint()` names its bytes.

    `walk(place)` reads on from a place, each row with the place after it.
    """

    label: str
    where: str
    lines: Callable[[], Iterator[Line]]
    fingerprint: Callable[[], str]
    walk: Callable[[Place], Iterator[tuple[Line, Place]]]


@dataclass(frozen=True, slots=True)
class SplitPart:
    """The bracket of `train[10%:20]`: each bound in rows or per cent, either may be missing."""

    start: str
    stop: str

    def bounds(self, num_rows: int) -> tuple[int, int]:
        return _bound(self.start, 0, num_rows), _bound(self.stop, num_rows, num_rows)


def parse_split(source: Source, where: str) -> tuple[str, SplitPart | None]:
    match = re.fullmatch(r"([\w.-]+)(?:\[(-?\d{0,15}%?):(-?\d{0,15}%?)\])?", source.split)
    if match is None:
        raise refusal(
            f"{where}.split",
            source,
            f"{source.split!r} is no split",
            help="a name, or a slice of one such as train[:10%]",
        )
    name, start, stop = match.groups()
    return name, None if start is None else SplitPart(start, stop)


def _bound(text: str, default: int, num_rows: int) -> int:
    if text in ("", "-"):
        return default
    value = round(int(text[:-1]) * num_rows / 100) if text.endswith("%") else int(text)
    return max(0, min(num_rows, value + num_rows if value < 0 else value))


def refusal(where: str, source: Source, message: str, help: str | None = None) -> DataError:
    """The error of a source: `where` is its place in the configuration."""
    return DataError(Problem(where, message, Origin("data", source.path), help))
