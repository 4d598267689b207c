"""The first row of a source decides how all are read; what the settings ask of it is checked here, before the rest.

Each refusal names the columns that exist, what was wanted, and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sftctl.engine.data.formats import (
    FORMATS,
    ChatRow,
    Format,
    PairRow,
    Reading,
    Row,
    TextRow,
    TokensRow,
    detect,
    missing,
    rename,
    used_columns,
)
from sftctl.engine.data.origin import Source
from sftctl.engine.data.rendering import Loss
from sftctl.errors import DataError, Origin, Problem


def settle(source: Source, value: Mapping[str, Any], *, text_field: str, where: str) -> Reading:
    """The format and renames of a source from its first row. Raises DataError."""
    absent = [(wanted, name) for wanted, name in source.columns.items() if name not in value]
    if absent:
        wanted, name = absent[0]
        raise _error(
            f"{where}.columns.{wanted}", source, f"there is no column {name!r}", f"the source has {_names(value)}"
        )
    columns = tuple(rename(value, source.columns))
    format = _format(source, columns, text_field, where)
    unused = tuple(name for name in columns if name not in used_columns(format, text_field))
    return Reading(format, text_field, source.columns, unused)


def _format(source: Source, columns: Sequence[str], text_field: str, where: str) -> Format:
    if source.format == "auto":
        found = detect(columns, text_field)
        if found is not None:
            return found
        raise _error(
            where,
            source,
            f"its columns ({_names(columns)}) are those of no format",
            f'rename them with columns = {{prompt = "{next(iter(columns), "question")}", …}}; wanted are messages, '
            "or prompt and completion, or user and assistant, or instruction and output, "
            f"or {text_field}, or input_ids",
        )
    format = next(name for name in FORMATS if name == source.format)
    gaps = missing(format, columns, text_field)
    if gaps:
        raise _error(
            f"{where}.format",
            source,
            f"format {format} wants the column{'s' if len(gaps) > 1 else ''} {' and '.join(gaps)}",
            f'the source has {_names(columns)}; rename with columns = {{{gaps[0]} = "…"}}',
        )
    return format


def check_loss(row: Row, loss: Loss, source: Source, where: str) -> None:
    """What the loss settings ask for must be in the rows; raises DataError where it is not."""
    chat = isinstance(row, ChatRow)
    kind = {TextRow: "text", PairRow: "plain prompts and completions", TokensRow: "token ids"}.get(
        type(row), "conversations"
    )
    if loss.completion_only_loss and not _has_prompt(row):
        raise _error(
            "sft.completion_only_loss",
            source,
            f"completion_only_loss trains completions, and this source ({where}, {kind}) has no prompts",
            "leave it unset (each format then has its own rule), or give "
            + ("completion_mask in every row" if isinstance(row, TokensRow) else "prompt and completion")
            + (", or use sft.assistant_only_loss" if chat else ""),
        )
    if loss.assistant_only_loss and not chat and not (isinstance(row, TokensRow) and row.assistant_masks is not None):
        raise _error(
            "sft.assistant_only_loss",
            source,
            f"assistant_only_loss trains an assistant's turns, and this source ({where}) is of {kind}",
            ("give assistant_masks in every row" if isinstance(row, TokensRow) else "give messages")
            + ", or rename the columns to user and assistant, or leave it false",
        )
    if loss.last_turn_only_loss and isinstance(row, (TextRow, TokensRow)):
        raise _error(
            "sft.last_turn_only_loss",
            source,
            f"last_turn_only_loss trains the last turn, and this source ({where}) is of {kind}",
            "give messages, or leave it false",
        )


def check_template(row: Row, format: Format, has_template: bool, source: Source, where: str) -> None:
    """Conversations want a chat template."""
    if isinstance(row, ChatRow) and not has_template:
        raise _error(
            "model.chat_template_path",
            source,
            f"{where} holds conversations ({format}), and the tokenizer has no chat template",
            "name a Jinja file with model.chat_template_path, or train on plain prompt and completion",
        )


def notes(reading: Reading, row: Row, has_template: bool, uses_clock: bool) -> tuple[str, ...]:
    """What a person should know of how the source is read, beside the numbers."""
    said = []
    if reading.unused:
        said.append(f"columns not used: {', '.join(reading.unused)}")
    if isinstance(row, PairRow) and has_template:
        said.append(
            "prompt and completion are plain text, and the chat template is not applied; to train them as a chat, "
            "rename the columns to user and assistant"
        )
    if isinstance(row, ChatRow) and uses_clock:
        said.append("the chat template writes today's date, so that these rows differ from day to day")
    return tuple(said)


def _has_prompt(row: Row) -> bool:
    if isinstance(row, ChatRow):
        return row.num_prompt is not None
    return isinstance(row, PairRow) or (isinstance(row, TokensRow) and row.completion_mask is not None)


def _names(columns: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(columns) or "no column"


def _error(path: str, source: Source, message: str, help: str) -> DataError:
    return DataError(Problem(path, message, Origin("data", source.path), help))
