"""One source, from its first line to its store: chunks through workers, in order, and the book kept.

Works in chunks, so that memory does not grow with the source. In one process, the tokenizer's threads (they let go
of Python's lock) work on one chunk while the next is rendered. With `num_proc` processes each makes whole chunks;
the result is the same to the byte.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from itertools import islice
from typing import Any

from sftctl.engine.data.formats import BadRow, ChatRow, Reading, Row, rename
from sftctl.engine.data.ledger import Dropped, SourceLedger
from sftctl.engine.data.proof import Tally
from sftctl.engine.data.readers import Line
from sftctl.engine.data.reading import check_loss, check_template, notes, settle
from sftctl.engine.data.sources import OpenSource, Source
from sftctl.engine.data.store import Store, Writer
from sftctl.engine.data.worker import (
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
    """Prepares one source into a writer."""

    def __init__(
        self,
        source: Source,
        opened: OpenSource,
        settings: Settings,
        kit: Kit,
        writer: Writer,
        *,
        num_proc: int | None = None,
    ) -> None:
        self._source, self._opened, self._settings, self._kit = source, opened, settings, kit
        self._writer, self._num_proc = writer, num_proc
        self._reading: Reading | None = None
        self._row_type: type[Row] | None = None
        self._notes: tuple[str, ...] = ()
        self._stop_tokens: tuple[str, ...] = ()
        self._stop_ids: list[int] = []
        self._tally = Tally(())
        self._num_read = self._truncated = self._tokens_cut = self._trained_cut = 0

    def run(self) -> Store:
        """Read the source to its end. Raises DataError."""
        chunks = self._chunks()
        for chunk in chunks:
            if self._start(chunk):
                self._run_all(chunk, chunks)
                break
            self._refuse_all(chunk)
        if not self._num_read:
            raise self._error("the source is empty: it has no rows")
        if not self._tally.tokens:
            raise self._nothing_left()
        return self._writer.finish(self._meta())

    def _chunks(self) -> Iterator[list[Numbered]]:
        numbered = enumerate(self._opened.lines(), start=1)
        while chunk := list(islice(numbered, CHUNK_ROWS)):
            yield chunk

    def _start(self, chunk: list[Numbered]) -> bool:
        """Settle the reading on the first good row of a chunk, and hold the settings against it."""
        for _, line in chunk:
            if line.value is None:
                continue
            if self._reading is None:
                self._reading = settle(
                    self._source, line.value, text_field=self._settings.text_field, where=self._opened.where
                )
            try:
                row = self._reading.row(line.value)
            except BadRow:
                continue
            self._check(row, line, self._reading)
            return True
        return False

    def _check(self, row: Row, line: Line, reading: Reading) -> None:
        assert line.value is not None
        loss, where, template = self._settings.loss, self._opened.where, self._kit.template
        check_template(row, reading.format, template is not None, self._source, where)
        check_loss(row, rename(line.value, self._source.columns), reading.format, loss, self._source, where)
        self._row_type = type(row)
        self._notes = notes(reading, row, template is not None, template is not None and template.uses_clock)
        self._stop_tokens = self._kit.stop_tokens(isinstance(row, ChatRow))
        ids = [self._kit.encoder.backend.token_to_id(token) for token in self._stop_tokens]
        self._stop_ids = [index for index in ids if index is not None]
        self._tally = Tally(self._stop_ids)

    def _run_all(self, first: list[Numbered], rest: Iterator[list[Numbered]]) -> None:
        for made in self._in_processes(first, rest) if (self._num_proc or 1) > 1 else self._in_threads(first, rest):
            self._book(made)

    def _in_threads(self, first: list[Numbered], rest: Iterator[list[Numbered]]) -> Iterator[Made]:
        assert self._reading is not None
        assert self._row_type is not None
        worker = Worker(self._reading, self._row_type, self._settings, self._kit)
        with ThreadPoolExecutor(1, thread_name_prefix="tokenise") as pool:
            pending: Pending = worker.render(first, pool)
            for chunk in rest:
                following = worker.render(chunk, pool)
                yield worker.finish(pending)
                pending = following
            yield worker.finish(pending)

    def _in_processes(self, first: list[Numbered], rest: Iterator[list[Numbered]]) -> Iterator[Made]:
        assert self._num_proc is not None
        assert self._reading is not None
        assert self._row_type is not None
        state = (self._reading, self._row_type, self._settings, state_of(self._kit.tokenizer))
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self._num_proc, context, _begin, state) as pool:
            waiting: deque[Future[Made]] = deque([pool.submit(_make, first)])
            for chunk in rest:
                waiting.append(pool.submit(_make, chunk))
                if len(waiting) > 2 * self._num_proc:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _book(self, made: Made) -> None:
        self._num_read += made.num_read
        self._fall(made.fallen)
        if made.chunk is None:
            return
        self._truncated += made.truncated
        self._tokens_cut += made.tokens_cut
        self._trained_cut += made.trained_cut
        self._tally.add(made.chunk)
        self._writer.append(made.chunk, made.numbers)

    def _refuse_all(self, chunk: list[Numbered]) -> None:
        """A chunk without one good row."""
        fallen = []
        for number, line in chunk:
            try:
                reason = line.error or "unreadable"
                if line.value is not None and self._reading is not None:
                    self._reading.row(line.value)
            except BadRow as error:
                reason = str(error)
            fallen.append(Fallen(number, line, "bad_row", reason, refused=True))
        self._num_read += len(chunk)
        self._fall(fallen)

    def _fall(self, fallen: list[Fallen] | Any) -> None:
        """Rows that fell out: into the book, or, where they must not, into an error with the first of them."""
        problems = []
        for row in fallen:
            if row.refused and (row.kind == "too_long" or self._settings.on_bad_row == "error"):
                problems.append(self._problem(row))
            else:
                dropped = Dropped(self._source.path, row.line.file, row.line.line, row.number, row.kind, row.reason)
                self._writer.dropped.add(dropped)
        if problems:
            raise DataError(*problems[:5])

    def _problem(self, row: Fallen) -> Problem:
        place = "" if row.line.line is not None else f"row {row.number}: "
        origin = Origin("data", row.line.file, row.line.line)
        return Problem(self._opened.where, f"{place}{row.reason}", origin, HELP[row.kind])

    def _meta(self) -> dict[str, Any]:
        assert self._reading is not None
        ledger = SourceLedger(
            source=self._source.path,
            format=self._reading.format,
            unused_columns=self._reading.unused,
            rows_read=self._num_read,
            rows_kept=self._num_read - len(self._writer.dropped),
            rows_dropped=len(self._writer.dropped),
            reasons=self._writer.dropped.reasons,
            tokens=self._tally.tokens,
            trained_tokens=self._tally.trained,
            rows_truncated=self._truncated,
            tokens_cut=self._tokens_cut,
            trained_tokens_cut=self._trained_cut,
            straddling_tokens=self._tally.straddling,
        )
        return {
            "ledger": ledger.as_data(),
            "tally": self._tally.as_data(),
            "stop_tokens": list(self._stop_tokens),
            "stop_token_ids": self._stop_ids,
            "notes": list(self._notes),
        }

    def _nothing_left(self) -> DataError:
        reasons = ", ".join(f"{count} {kind}" for kind, count in self._writer.dropped.reasons.items())
        first = self._writer.dropped.first
        assert first is not None
        return self._error(
            f"none of its {self._num_read} rows can be trained on ({reasons})",
            f"the first, {Origin('data', first.file, first.line or first.row)}: {first.reason}",
        )

    def _error(self, message: str, help: str | None = None) -> DataError:
        return DataError(Problem(self._opened.where, message, Origin("data", self._source.path), help))


_worker: Worker | None = None  # of a process that prepares rows for another


def _begin(reading: Reading, row_type: type[Row], settings: Settings, state: dict[str, Any]) -> None:
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker = Worker(reading, row_type, settings, Kit(BareTokenizer(state)))


def _make(lines: list[Numbered]) -> Made:
    assert _worker is not None
    with ThreadPoolExecutor(1) as pool:
        return _worker.finish(_worker.render(lines, pool))
