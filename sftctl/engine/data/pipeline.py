"""One source, from its lines to labelled tokens: chunks through workers, in order.

    Pipeline.made(lines)   -> Made*       what a stream takes, window by window
    Pipeline.run(writer)   -> Store       all of the source, the book kept

Works in chunks, so that memory does not grow with the source. In one process, the tokenizer's threads (they let go
of Python's lock) work on one chunk while the next is rendered. With `num_proc` processes each makes whole chunks;
the result is the same to the byte.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

from sftctl.engine.data.book import Book, Settled
from sftctl.engine.data.formats import BadRow, ChatRow, Reading, Row, TokensRow
from sftctl.engine.data.ledger import Dropped
from sftctl.engine.data.origin import OpenSource, Source
from sftctl.engine.data.reading import check_loss, check_template, notes, settle
from sftctl.engine.data.store import Store, Writer
from sftctl.engine.data.worker import (
    NO_ROWS,
    BareTokenizer,
    Fallen,
    Kit,
    Made,
    Numbered,
    Pending,
    Settings,
    Worker,
    state_of,
)
from sftctl.errors import DataError, Origin, Problem

CHUNK_ROWS = 1024
HELP = {
    "bad_row": 'mend the row, or leave such rows out with data.on_bad_row = "skip"',
    "template": 'mend the row, or leave such rows out with data.on_bad_row = "skip"',
    "mask": "train only the last turn (sft.last_turn_only_loss), give a template with {% generation %} tags "
    '(model.chat_template_path), or leave such rows out with data.on_bad_row = "skip"',
    "too_long": "raise sft.max_length, or choose another sft.truncation_mode",
}


class Pipeline:
    """Prepares one source. `settled` is there once a good row was seen."""

    def __init__(
        self, source: Source, opened: OpenSource, settings: Settings, kit: Kit, *, num_proc: int | None = None
    ) -> None:
        self._source, self._opened, self._settings, self._kit = source, opened, settings, kit
        self._num_proc = num_proc
        self._reading: Reading | None = None
        self.settled: Settled | None = None

    def run(self, writer: Writer) -> Store:
        """Read the source to its end. Raises DataError."""
        num_read, book = 0, None
        for made in self.made(enumerate(self._opened.lines(), start=1)):
            num_read += made.num_read
            for row in made.fallen:
                writer.dropped.add(self.dropped(row, row.number))
            if self.settled is None:
                continue
            book = book or Book(self.settled)
            book.add_fallen(made.fallen)
            if made.chunk is not None:
                book.add(made.chunk, made.trained_cut)
                writer.append(made.chunk, made.numbers)
        if book is None or num_read == len(writer.dropped):
            raise self.nothing_left(num_read, writer.dropped.reasons, writer.dropped.first)
        return writer.finish(book.meta(self._source.path, num_read=num_read, reasons=writer.dropped.reasons))

    def made(self, lines: Iterator[Numbered]) -> Iterator[Made]:
        """The rows of numbered lines, a chunk at a time. Raises DataError for rows that must not fall out."""
        chunks = _chunks(lines)
        for chunk in chunks:
            if self._settle(chunk):
                ways = self._in_processes if (self._num_proc or 1) > 1 else self._in_threads
                for made in ways(chunk, chunks):
                    self._refuse(made.fallen)
                    yield made
                return
            fallen = self._without_one_good(chunk)
            self._refuse(fallen)
            yield Made(None, NO_ROWS, NO_ROWS, fallen, len(chunk))

    def dropped(self, row: Fallen, number: int) -> Dropped:
        """A row that was left out, for the book; `number` is its place in the source, from 1."""
        return Dropped(self._source.path, row.line.file, row.line.line, number, row.kind, row.reason)

    def nothing_left(self, num_read: int, reasons: Mapping[str, int], first: Dropped | None) -> DataError:
        """The error of a source that has nothing to train on."""
        if first is None:
            message, help = "the source is empty: it has no rows", None
        else:
            kinds = ", ".join(f"{count} {kind}" for kind, count in reasons.items())
            message = f"none of its {num_read} rows can be trained on ({kinds})"
            help = f"the first, {Origin('data', first.file, first.line or first.row)}: {first.reason}"
        return DataError(Problem(self._opened.where, message, Origin("data", self._source.path), help))

    def _settle(self, chunk: list[Numbered]) -> bool:
        """Settle the reading on the first good row of a chunk, and hold the settings against it.

        A first row of no known format is an error, or with on_bad_row = "skip" one where no row of the chunk has any.
        """
        unknown: DataError | None = None
        for _, line in chunk:
            if line.value is None:
                continue
            try:
                if self._reading is None:
                    self._reading = self._read_by(line.value)
                row = self._reading.row(line.value)
            except BadRow:
                continue
            except DataError as error:
                if self._settings.on_bad_row == "error":
                    raise
                unknown = unknown or error
                continue
            if self.settled is None:
                if isinstance(row, TokensRow):
                    self._reading = replace(self._reading, masks=row.masks)
                self.settled = self._settled_by(row, self._reading)
            return True
        if unknown is not None and self._reading is None:
            raise unknown
        return False

    def _read_by(self, value: Mapping[str, Any]) -> Reading:
        return settle(self._source, value, text_field=self._settings.text_field, where=self._opened.where)

    def _settled_by(self, row: Row, reading: Reading) -> Settled:
        loss, where, template = self._settings.loss, self._opened.where, self._kit.template
        check_template(row, reading.format, template is not None, self._source, where)
        check_loss(row, loss, self._source, where)
        templated = isinstance(row, (ChatRow, TokensRow))  # ids may be of a chat: what ends its turns is known
        return Settled(
            reading=reading,
            row_type=type(row),
            notes=notes(reading, row, template is not None, template is not None and template.uses_clock),
            stop_tokens=self._kit.stop_tokens(templated),
            stop_ids=self._kit.stop_ids(templated),
        )

    def _in_threads(self, first: list[Numbered], rest: Iterator[list[Numbered]]) -> Iterator[Made]:
        assert self.settled is not None
        worker = Worker(self.settled.reading, self.settled.row_type, self._settings, self._kit)
        with _pool(ThreadPoolExecutor(1, thread_name_prefix="tokenise")) as pool:
            pending: Pending = worker.render(first, pool)
            for chunk in rest:
                following = worker.render(chunk, pool)
                yield worker.finish(pending)
                pending = following
            yield worker.finish(pending)

    def _in_processes(self, first: list[Numbered], rest: Iterator[list[Numbered]]) -> Iterator[Made]:
        assert self._num_proc is not None
        assert self.settled is not None
        state = (self.settled.reading, self.settled.row_type, self._settings, state_of(self._kit.tokenizer))
        context = multiprocessing.get_context("spawn")
        with _pool(ProcessPoolExecutor(self._num_proc, context, _begin, state)) as pool:
            waiting: deque[Future[Made]] = deque([pool.submit(_make, first)])
            try:
                for chunk in rest:
                    waiting.append(pool.submit(_make, chunk))
                    if len(waiting) > 2 * self._num_proc:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            except BrokenExecutor as error:
                what = "a process that prepares rows ended before its work was done: it was killed, or had no memory"
                help = f"set fewer processes than {self._num_proc}, or none"
                raise DataError(Problem("data.dataset_num_proc", what, help=help)) from error

    def _without_one_good(self, chunk: list[Numbered]) -> list[Fallen]:
        fallen = []
        for number, line in chunk:
            try:
                reason = line.error or "unreadable"
                if line.value is not None and self._reading is not None:
                    self._reading.row(line.value)
            except BadRow as error:
                reason = str(error)
            fallen.append(Fallen(number, line, "bad_row", reason, refused=True))
        return fallen

    def _refuse(self, fallen: Sequence[Fallen]) -> None:
        """An error with the first of the rows that must not fall out."""
        strict = self._settings.on_bad_row == "error"
        refused = [row for row in fallen if row.refused and (strict or row.kind == "too_long")]
        if refused:
            raise DataError(*(self._problem(row) for row in refused[:5]))

    def _problem(self, row: Fallen) -> Problem:
        place = "" if row.line.line is not None else f"row {row.number}: "
        origin = Origin("data", row.line.file, row.line.line)
        return Problem(self._opened.where, f"{place}{row.reason}", origin, HELP[row.kind])


@contextmanager
def _pool(pool: Executor) -> Iterator[Executor]:
    """A pool that is let go of and not waited for: a generator that nobody reads on may be closed in any thread."""
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _chunks(lines: Iterator[Numbered]) -> Iterator[list[Numbered]]:
    while chunk := list(islice(lines, CHUNK_ROWS)):
        yield chunk


_worker: Worker | None = None  # of a process that prepares rows for another


def _begin(reading: Reading, row_type: type[Row], settings: Settings, state: dict[str, Any]) -> None:
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker = Worker(reading, row_type, settings, Kit(BareTokenizer(state)))


def _make(lines: list[Numbered]) -> Made:
    assert _worker is not None
    with ThreadPoolExecutor(1) as pool:
        return _worker.finish(_worker.render(lines, pool))
