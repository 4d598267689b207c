"""One source, from lines to a store: read, parse, render, tokenise, label, cut, write, and keep the book.

Works in chunks, so that memory does not grow with the source; while the tokenizer's threads work on one chunk
(they let go of Python's lock), the next is rendered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from sftctl.engine.data import labels
from sftctl.engine.data.formats import BadRow, ChatRow, Reading, Row, TokensRow, rename
from sftctl.engine.data.labels import Chunk, TruncationMode
from sftctl.engine.data.ledger import Dropped, SourceLedger, reasons_of
from sftctl.engine.data.masking import Masker, MaskProblem
from sftctl.engine.data.proof import Tally
from sftctl.engine.data.readers import Line
from sftctl.engine.data.reading import check_loss, check_template, notes, settle
from sftctl.engine.data.rendering import RENDER, Loss, RenderedRow, Renderer
from sftctl.engine.data.sources import OpenSource, Source
from sftctl.engine.data.store import Store, Writer
from sftctl.engine.data.templates import ChatTemplate, TemplateRefusal
from sftctl.engine.data.tokens import Encoded, Encoder, Tokenizer
from sftctl.errors import DataError, Origin, Problem

CHUNK_ROWS = 1024
SHOWN_PROBLEMS = 5
KIND_OF_ERROR: dict[type[Exception], str] = {BadRow: "bad_row", MaskProblem: "mask", TemplateRefusal: "template"}


@dataclass(frozen=True)
class Settings:
    """All that decides, beside the source, what tokens come out and which of them train."""

    max_length: int | None = 1024
    truncation_mode: TruncationMode = "keep_start"
    loss: Loss = Loss()  # noqa: RUF009  (frozen)
    text_field: str = "text"
    on_bad_row: Literal["error", "skip"] = "error"


class Kit:
    """A tokenizer and what is made of it once: encoder, template, masker."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.encoder = Encoder(tokenizer)

    @cached_property
    def template(self) -> ChatTemplate | None:
        source = self.tokenizer.chat_template
        return None if not source else ChatTemplate(source, self.tokenizer.special_tokens_map)

    @cached_property
    def masker(self) -> Masker | None:
        if self.template is None:
            return None
        return Masker(self.template, eos_token=self.tokenizer.eos_token, added_tokens=self.encoder.added)

    def stop_tokens(self, templated: bool) -> tuple[str, ...]:
        if templated and self.masker is not None:
            return self.masker.stop_tokens
        return (self.tokenizer.eos_token,) if self.tokenizer.eos_token else ()

    def digest_text(self) -> str:
        template = self.template.digest_text if self.template is not None else ""
        return f"{self.encoder.digest_text()} {template}"


@dataclass(slots=True)
class _Pending:
    """A chunk on its way through the tokenizer."""

    lines: list[tuple[int, Line]]
    rows: list[RenderedRow]
    tokens: list[TokensRow]
    encoded: Future[Encoded] | None


class Pipeline:
    """Prepares one source into a writer."""

    def __init__(self, source: Source, opened: OpenSource, settings: Settings, kit: Kit) -> None:
        self._source, self._opened, self._settings, self._kit = source, opened, settings, kit
        self._reading: Reading | None = None
        self._row_type: type | None = None
        self._dropped: list[Dropped] = []
        self._problems: list[Problem] = []
        self._tally: Tally | None = None
        self._stop_tokens: tuple[str, ...] = ()
        self._notes: tuple[str, ...] = ()
        self._num_read = 0
        self._truncated = self._tokens_cut = self._trained_cut = 0

    def run(self, writer: Writer) -> Store:
        """Read the source to its end. Raises DataError."""
        with ThreadPoolExecutor(1, thread_name_prefix="tokenise") as pool:
            pending: _Pending | None = None
            for lines in self._chunks():
                following = self._render(lines, pool)
                if pending is not None:
                    self._finish(pending, writer)
                pending = following
            if pending is not None:
                self._finish(pending, writer)
        if not self._num_read:
            raise self._error("the source is empty: it has no rows")
        if self._tally is None or not self._tally.tokens:
            raise self._nothing_left()
        return writer.finish(self._meta(self._tally))

    def _chunks(self) -> Iterator[list[tuple[int, Line]]]:
        chunk: list[tuple[int, Line]] = []
        for number, line in enumerate(self._opened.lines(), start=1):
            chunk.append((number, line))
            if len(chunk) == CHUNK_ROWS:
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    def _render(self, lines: list[tuple[int, Line]], pool: ThreadPoolExecutor) -> _Pending:
        """Parse and render a chunk, and hand its texts to the tokenizer's thread."""
        pending = _Pending([], [], [], None)
        for number, line in lines:
            self._num_read += 1
            try:
                row = self._parse(line)
                if isinstance(row, TokensRow):
                    self._check_ids(row)
                    pending.tokens.append(row)
                else:
                    pending.rows.append(self._rendered(row))
            except (BadRow, MaskProblem, TemplateRefusal) as error:
                self._refuse(number, line, KIND_OF_ERROR[type(error)], str(error))
            else:
                pending.lines.append((number, line))
            if len(self._problems) == SHOWN_PROBLEMS:
                break
        self._raise_problems()
        if pending.rows:
            pending.encoded = pool.submit(self._kit.encoder.encode, [row.rendered.text for row in pending.rows])
        return pending

    def _parse(self, line: Line) -> Row:
        if line.value is None:
            raise BadRow(line.error or "unreadable")
        if self._reading is None:
            self._reading = settle(
                self._source, line.value, text_field=self._settings.text_field, where=self._opened.where
            )
        row = self._reading.row(line.value)
        if self._row_type is None:
            self._start(row, rename(line.value, self._source.columns), self._reading)
        elif type(row) is not self._row_type:
            raise BadRow("prompt and completion are messages in some rows and text in others; a source has one format")
        return row

    def _start(self, row: Row, value: Mapping[str, Any], reading: Reading) -> None:
        """The first good row: hold the settings against it."""
        loss, where, template = self._settings.loss, self._opened.where, self._kit.template
        check_template(row, reading.format, template is not None, self._source, where)
        check_loss(row, value, reading.format, loss, self._source, where)
        self._row_type = type(row)
        self._notes = notes(reading, row, template is not None, template is not None and template.uses_clock)
        self._stop_tokens = self._kit.stop_tokens(isinstance(row, ChatRow))
        self._tally = Tally([self._kit.encoder.backend.token_to_id(token) for token in self._stop_tokens])
        masker = self._kit.masker if isinstance(row, ChatRow) else None
        self._renderer = Renderer(masker, loss, reading.format)

    def _rendered(self, row: Row) -> RenderedRow:
        rendered = RENDER[type(row)](self._renderer, row)
        text = rendered.rendered.text
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise BadRow(f"half a surrogate pair ({text[error.start]!r}) stands alone in its text") from error
        return rendered

    def _check_ids(self, row: TokensRow) -> None:
        size = self._kit.encoder.vocab_size
        odd = next((token for token in row.input_ids if not 0 <= token < size), None)
        if odd is not None:
            raise BadRow(f"input_ids holds {odd}, and the tokenizer has the ids 0 to {size - 1}")

    def _finish(self, pending: _Pending, writer: Writer) -> None:
        """Label, cut, count and write a chunk that has come back from the tokenizer."""
        if not pending.lines:
            return
        assert self._tally is not None
        chunk, lines = self._without_long(self._labelled(pending), pending.lines)
        mode, max_length = self._settings.truncation_mode, self._settings.max_length
        cut = labels.truncate(chunk, max_length, mode) if max_length is not None else chunk
        before, after = chunk.sums(chunk.trained), cut.sums(cut.trained)
        keep = after > 0
        for row in np.flatnonzero(~keep):
            reason = "its targets lie behind the cut to max_length" if before[row] else "no token of it trains"
            self._leave_out(*lines[row], "nothing_to_train", reason)
        self._truncated += int((keep & (cut.lengths < chunk.lengths)).sum())
        self._tokens_cut += int((chunk.lengths - cut.lengths).sum())
        self._trained_cut += int((before - after).sum())
        kept = labels.select(cut, keep)
        self._tally.add(kept)
        writer.append(kept, np.array([number for number, _ in lines], dtype=np.int64)[keep])

    def _labelled(self, pending: _Pending) -> Chunk:
        if pending.encoded is None:
            return labels.of_tokens(pending.tokens, self._settings.loss)
        chunk = labels.label(pending.encoded.result(), pending.rows)
        if pending.rows[0].rendered.templated:
            return chunk
        encoder = self._kit.encoder
        return labels.framed(chunk, encoder.prefix_ids, encoder.suffix_ids, encoder.eos_token_id)

    def _without_long(self, chunk: Chunk, lines: list[tuple[int, Line]]) -> tuple[Chunk, list[tuple[int, Line]]]:
        """With truncation_mode drop, long rows leave; with error, they are problems."""
        mode, max_length = self._settings.truncation_mode, self._settings.max_length
        if max_length is None or mode in ("keep_start", "keep_end"):
            return chunk, lines
        long = chunk.lengths > max_length
        for row in np.flatnonzero(long):
            reason = f"{chunk.lengths[row]} tokens, and max_length is {max_length}"
            if mode == "drop":
                self._leave_out(*lines[row], "too_long", reason)
            elif len(self._problems) < SHOWN_PROBLEMS:
                help = "raise sft.max_length, or choose another sft.truncation_mode"
                self._problems.append(self._problem(*lines[row], reason, help))
        self._raise_problems()
        return labels.select(chunk, ~long), [line for line, is_long in zip(lines, long, strict=True) if not is_long]

    def _refuse(self, number: int, line: Line, kind: str, reason: str) -> None:
        """A row that does not fit: a problem, or with on_bad_row = "skip" a row left out."""
        if self._settings.on_bad_row == "skip":
            self._leave_out(number, line, kind, reason)
        else:
            help = 'mend the row, or leave such rows out with data.on_bad_row = "skip"'
            self._problems.append(self._problem(number, line, reason, help))

    def _leave_out(self, number: int, line: Line, kind: str, reason: str) -> None:
        self._dropped.append(Dropped(self._source.path, line.file, line.line, number, kind, reason))

    def _problem(self, number: int, line: Line, reason: str, help: str) -> Problem:
        place = "" if line.line is not None else f"row {number}: "
        return Problem(self._opened.where, f"{place}{reason}", Origin("data", line.file, line.line), help)

    def _raise_problems(self) -> None:
        if self._problems:
            raise DataError(*self._problems)

    def _meta(self, tally: Tally) -> dict[str, Any]:
        assert self._reading is not None
        ledger = SourceLedger(
            source=self._source.path,
            format=self._reading.format,
            unused_columns=self._reading.unused,
            rows_read=self._num_read,
            rows_kept=self._num_read - len(self._dropped),
            rows_dropped=len(self._dropped),
            reasons=reasons_of(self._dropped),
            tokens=tally.tokens,
            trained_tokens=tally.trained,
            rows_truncated=self._truncated,
            tokens_cut=self._tokens_cut,
            trained_tokens_cut=self._trained_cut,
            straddling_tokens=tally.straddling,
            dropped=tuple(self._dropped),
        )
        return {
            "ledger": asdict(ledger),
            "tally": tally.as_data(),
            "stop_tokens": list(self._stop_tokens),
            "notes": list(self._notes),
        }

    def _nothing_left(self) -> DataError:
        reasons = ", ".join(f"{count} {kind}" for kind, count in reasons_of(self._dropped).items())
        first = self._dropped[0]
        return self._error(
            f"none of its {self._num_read} rows can be trained on ({reasons})",
            f"the first, {Origin('data', first.file, first.line or first.row)}: {first.reason}",
        )

    def _error(self, message: str, help: str | None = None) -> DataError:
        return DataError(Problem(self._opened.where, message, Origin("data", self._source.path), help))
