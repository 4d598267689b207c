"""One source of a stream: its kept rows in order, read ahead by a chunk, and the place after each.

    has_next()            read on until a kept row is there, or the source has ended
    take()                that row goes to the window that is being filled
    hand_out(count)       the first `count` taken rows, for good; those after them are taken again

Property: what comes out after `seek(place)` are the rows that would have come after that place, to the byte, since
a row's tokens do not depend on the rows beside it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sftctl.engine.data.labels import Chunk, select
from sftctl.engine.data.ledger import Dropped
from sftctl.engine.data.origin import OpenSource, Place
from sftctl.engine.data.pipeline import Pipeline
from sftctl.engine.data.worker import Fallen, Made, Numbered
from sftctl.errors import DataError

MAX_ROWS_IN_VAIN = 65_536
START = Place()


@dataclass(frozen=True, slots=True)
class Part:
    """Rows that were handed out: their chunks, what truncation took, what fell out between them, and the place after.

    `numbers` are the rows' own, from 1, in their pass over the source.
    """

    chunks: tuple[Chunk, ...]
    numbers: tuple[NDArray[np.int64], ...]
    trained_cuts: tuple[NDArray[np.int64], ...]
    fallen: tuple[Fallen, ...]
    dropped: tuple[Dropped, ...]
    num_read: int
    place: Place


class ReadAhead:
    """Rows of one source. `repeats` begins it anew at its end, without end."""

    def __init__(self, pipeline: Pipeline, opened: OpenSource, *, repeats: bool) -> None:
        self.pipeline, self._opened, self._repeats = pipeline, opened, repeats
        self.label = opened.label
        self.seek(START)

    def seek(self, place: Place) -> None:
        """Go on from `place`; what was read ahead is forgotten."""
        self._place = place
        self._places: deque[Place] = deque()  # after each row read, the first of them `_first` of this pass
        self._first = 1
        self._delivered = 0
        self.ended = False
        self._made: deque[Made] = deque()
        self._lengths: list[int] = []
        self._ordinals: list[int] = []
        self.taken = 0
        self._chunks: Iterator[Made] = self.pipeline.made(self._lines(place))

    def _lines(self, place: Place) -> Iterator[Numbered]:
        """Lines with an ordinal, from 1, that does not begin anew with the source."""
        ordinal = 0
        while True:
            before, from_start = ordinal, place.row == 0
            for line, after in self._opened.walk(place):
                ordinal += 1
                self._places.append(after._replace(passes=place.passes))
                yield ordinal, line
            if not self._repeats or (from_start and ordinal == before):
                return
            place = Place(passes=place.passes + 1)

    def has_next(self) -> bool:
        """Whether a row is there that is not taken yet. Raises DataError, as the pipeline does."""
        while self.taken == len(self._lengths):
            made = next(self._chunks, None)
            if made is None:
                self.ended = True
                return False
            self._made.append(made)
            self._delivered += made.num_read
            if made.chunk is not None:
                self._lengths += made.chunk.lengths.tolist()
                self._ordinals += made.numbers.tolist()
            if not self._lengths and self._delivered - self._first >= MAX_ROWS_IN_VAIN:
                raise self.nothing_left()
        return True

    @property
    def next_passes(self) -> int:
        """How many whole passes lie before the next row; `has_next` was asked before."""
        return self._places[self._ordinals[self.taken] - self._first].passes

    def take(self) -> int:
        """Take the next row: its length in tokens."""
        self.taken += 1
        return self._lengths[self.taken - 1]

    def nothing_left(self) -> DataError:
        """The error of a source of whose rows none was kept."""
        part = self.peek()
        reasons = dict(Counter(row.kind for row in part.dropped).most_common())
        return self.pipeline.nothing_left(part.num_read, reasons, part.dropped[0] if part.dropped else None)

    def peek(self) -> Part:
        """The rows that were read, none of them handed out yet."""
        return self._part(self._delivered - self._first + 1, len(self._lengths))

    def hand_out(self, count: int) -> Part:
        """The first `count` taken rows, and what fell out before the last of them, or before the source's end."""
        assert count <= self.taken <= len(self._lengths), (count, self.taken)
        if self.ended and count == len(self._lengths):
            end = self._delivered
        else:
            end = self._ordinals[count - 1] if count else self._first - 1
        part = self._part(end - self._first + 1, count)
        self._forget(end, count)
        self.taken = 0
        return part

    def _part(self, num_read: int, count: int) -> Part:
        end = self._first + num_read - 1
        chunks, numbers, cuts, fallen, left = [], [], [], [], count
        for made in self._made:
            fallen += [row for row in made.fallen if self._first <= row.number <= end]
            if made.chunk is not None and left:
                chunk = select(made.chunk, np.arange(len(made.chunk)) < left)
                chunks.append(chunk)
                numbers.append(np.array([self._row(ordinal) for ordinal in made.numbers[: len(chunk)].tolist()]))
                cuts.append(made.trained_cut[: len(chunk)])
                left -= len(chunk)
        dropped = tuple(self.pipeline.dropped(row, self._row(row.number)) for row in fallen)
        place = self._places[num_read - 1] if num_read else self._place
        return Part(tuple(chunks), tuple(numbers), tuple(cuts), tuple(fallen), dropped, num_read, place)

    def _row(self, ordinal: int) -> int:
        return self._places[ordinal - self._first].row

    def _forget(self, end: int, count: int) -> None:
        """Let go of `count` kept rows and of all rows up to `end`."""
        for _ in range(end - self._first + 1):
            self._place = self._places.popleft()
        self._first = end + 1
        del self._lengths[:count], self._ordinals[:count]
        kept: deque[Made] = deque()
        for made in self._made:
            fallen = [row for row in made.fallen if row.number > end]
            chunk, later = made.chunk, made.numbers > end
            if chunk is not None and later.any():
                kept.append(Made(select(chunk, later), made.numbers[later], made.trained_cut[later], fallen, 0))
            elif fallen:
                kept.append(Made(None, made.numbers[:0], made.trained_cut[:0], fallen, 0))
        self._made = kept
