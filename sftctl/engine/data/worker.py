"""A chunk of rows, from lines to labelled tokens: parse, render, tokenise, label, cut, and say what fell out.

    render(lines) -> Pending        Python: holds the lock
    finish(pending) -> Made         waits for the tokenizer's threads, then numpy

A worker knows nothing of files, of order, or of the book; it can live in this process or in another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sftctl.engine.data import labels
from sftctl.engine.data.formats import BadRow, Reading, Row, TokensRow
from sftctl.engine.data.labels import Chunk, TruncationMode
from sftctl.engine.data.masking import Masker, MaskProblem
from sftctl.engine.data.readers import Line
from sftctl.engine.data.rendering import RENDER, Loss, RenderedRow, Renderer
from sftctl.engine.data.templates import ChatTemplate, TemplateRefusal
from sftctl.engine.data.tokens import Encoded, Encoder, Tokenizer

Numbered = tuple[int, Line]
KIND_OF_ERROR: dict[type[Exception], str] = {BadRow: "bad_row", MaskProblem: "mask", TemplateRefusal: "template"}
MAX_REFUSED = 5
NO_ROWS: NDArray[np.int64] = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Settings:
    """All that decides, beside the source, what tokens come out and which of them train."""

    max_length: int | None = 1024
    truncation_mode: TruncationMode = "keep_start"
    loss: Loss = field(default_factory=Loss)
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
        """The tokens that end an answer."""
        if templated and self.masker is not None:
            return self.masker.stop_tokens
        return (self.tokenizer.eos_token,) if self.tokenizer.eos_token else ()

    def stop_ids(self, templated: bool) -> tuple[int, ...]:
        """Their ids, of those that are one token."""
        ids = [self.encoder.backend.token_to_id(token) for token in self.stop_tokens(templated)]
        return tuple(index for index in ids if index is not None)

    def digest_text(self) -> str:
        """All of the tokenizer that decides tokens and masks."""
        template = self.template.digest_text if self.template is not None else ""
        return f"{self.encoder.digest_text()} {template}"


@dataclass(frozen=True, slots=True)
class Fallen:
    """A row that falls out. `refused` rows do not fit, and are problems where on_bad_row says so.

    `tokens_cut` and `trained_cut` are what truncation took of it before.
    """

    number: int
    line: Line
    kind: str
    reason: str
    refused: bool
    tokens_cut: int = 0
    trained_cut: int = 0


@dataclass(slots=True)
class Pending:
    """A chunk on its way through the tokenizer."""

    lines: list[Numbered] = field(default_factory=list)
    rows: list[RenderedRow] = field(default_factory=list)
    tokens: list[TokensRow] = field(default_factory=list)
    fallen: list[Fallen] = field(default_factory=list)
    encoded: Future[Encoded] | None = None
    num_read: int = 0


@dataclass(frozen=True, slots=True)
class Made:
    """A chunk that is done: the kept rows, their numbers, the targets truncation took of each, what fell out."""

    chunk: Chunk | None
    numbers: NDArray[np.int64]
    trained_cut: NDArray[np.int64]
    fallen: Sequence[Fallen]
    num_read: int


class Worker:
    """Makes chunks of one source, whose reading is settled."""

    def __init__(self, reading: Reading, row_type: type[Row], settings: Settings, kit: Kit) -> None:
        self._reading, self._row_type, self._settings, self._kit = reading, row_type, settings, kit
        self._renderer = Renderer(kit.masker, settings.loss, reading.format)
        self._skips = settings.on_bad_row == "skip"

    def render(self, lines: Sequence[Numbered], pool: Executor) -> Pending:
        """Parse and render lines, and hand their texts to the tokenizer in another thread."""
        pending = Pending()
        for number, line in lines:
            pending.num_read += 1
            try:
                self._take(line, pending)
            except (BadRow, MaskProblem, TemplateRefusal) as error:
                pending.fallen.append(Fallen(number, line, KIND_OF_ERROR[type(error)], str(error), refused=True))
                if not self._skips and len(pending.fallen) == MAX_REFUSED:
                    break
            else:
                pending.lines.append((number, line))
        if pending.rows and (self._skips or not pending.fallen):
            pending.encoded = pool.submit(self._kit.encoder.encode, [row.rendered.text for row in pending.rows])
        return pending

    def finish(self, pending: Pending) -> Made:
        """Label, cut and sort out a chunk that has come back from the tokenizer."""
        fallen = list(pending.fallen)
        if not pending.lines or (fallen and not self._skips):
            return Made(None, NO_ROWS, NO_ROWS, fallen, pending.num_read)
        chunk, lines = self._without_long(self._labelled(pending), pending.lines, fallen)
        mode, max_length = self._settings.truncation_mode, self._settings.max_length
        cut = labels.truncate(chunk, max_length, mode) if max_length is not None else chunk
        before, after = chunk.sums(chunk.trained), cut.sums(cut.trained)
        lost = (chunk.lengths - cut.lengths).tolist()
        keep = after > 0
        for row in np.flatnonzero(~keep):
            reason = "its targets lie behind the cut to max_length" if before[row] else "no token of it trains"
            taken = {"tokens_cut": lost[row], "trained_cut": int(before[row])}
            fallen.append(Fallen(*lines[row], "nothing_to_train", reason, refused=False, **taken))
        return Made(
            labels.select(cut, keep),
            np.array([number for number, _ in lines], dtype=np.int64)[keep],
            (before - after)[keep],
            fallen,
            pending.num_read,
        )

    def _take(self, line: Line, pending: Pending) -> None:
        if line.value is None:
            raise BadRow(line.error or "unreadable")
        row = self._reading.row(line.value)
        if type(row) is not self._row_type:
            raise BadRow("prompt and completion are messages in some rows and text in others; a source has one format")
        if isinstance(row, TokensRow):
            pending.tokens.append(check_ids(row, self._kit.encoder.vocab_size))
        else:
            pending.rows.append(check_text(RENDER[type(row)](self._renderer, row)))

    def _labelled(self, pending: Pending) -> Chunk:
        if pending.encoded is None:
            return labels.of_tokens(pending.tokens, self._settings.loss, self._kit.stop_ids(templated=True))
        chunk = labels.label(pending.encoded.result(), pending.rows)
        if pending.rows[0].rendered.templated:
            return chunk
        encoder = self._kit.encoder
        return labels.framed(chunk, encoder.prefix_ids, encoder.suffix_ids, encoder.eos_token_id)

    def _without_long(self, chunk: Chunk, lines: list[Numbered], fallen: list[Fallen]) -> tuple[Chunk, list[Numbered]]:
        """With truncation_mode drop or error, rows over max_length fall out."""
        mode, max_length = self._settings.truncation_mode, self._settings.max_length
        if max_length is None or mode in ("keep_start", "keep_end"):
            return chunk, lines
        long = chunk.lengths > max_length
        for row in np.flatnonzero(long):
            reason = f"it has {chunk.lengths[row]} tokens, and max_length is {max_length}"
            fallen.append(Fallen(*lines[row], "too_long", reason, refused=mode == "error"))
        return labels.select(chunk, ~long), [line for line, is_long in zip(lines, long, strict=True) if not is_long]


def check_text(row: RenderedRow) -> RenderedRow:
    """Text that can be UTF-8; raises BadRow."""
    text = row.rendered.text
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadRow(f"half a surrogate pair ({text[error.start]!r}) stands alone in its text") from error
    return row


def check_ids(row: TokensRow, vocab_size: int) -> TokensRow:
    """Ids that the tokenizer has; raises BadRow."""
    odd = next((token for token in row.input_ids if not 0 <= token < vocab_size), None)
    if odd is not None:
        raise BadRow(f"input_ids holds {odd}, and the tokenizer has the ids 0 to {vocab_size - 1}")
    return row


class BareTokenizer:
    """A tokenizer without Transformers, as another process gets it."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        import tokenizers  # heavy, and only in that other process

        self.backend_tokenizer: Any = tokenizers.Tokenizer.from_str(state["backend"])
        self.chat_template: str | dict[str, str] | None = state["chat_template"]
        self.eos_token: str | None = state["eos_token"]
        self.eos_token_id: int | None = state["eos_token_id"]
        self.special_tokens_map: Mapping[str, Any] = state["special_tokens_map"]

    def decode(self, token_ids: Any, *, skip_special_tokens: bool = False, **kwargs: Any) -> str:
        return str(self.backend_tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens))


def state_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """What a BareTokenizer is made of; can be pickled."""
    return {
        "backend": tokenizer.backend_tokenizer.to_str(),
        "chat_template": tokenizer.chat_template,
        "eos_token": tokenizer.eos_token,
        "eos_token_id": tokenizer.eos_token_id,
        "special_tokens_map": dict(tokenizer.special_tokens_map),
    }
