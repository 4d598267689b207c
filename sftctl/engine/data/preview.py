"""Samples as the model will see them, token by token, as plain data for a terminal, a page or a line of JSON.

preview(prepared, rows=3)                   the first rows of each source
preview(prepared, rows=3, bins=bins)        the first packed rows, with their documents
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from sftctl.engine.data.prepare import Prepared
from sftctl.engine.data.store import STRADDLES, TRAINED
from sftctl.errors import DataError, Problem
from sftctl.records import Bins


@dataclass(frozen=True, slots=True)
class Token:
    """One token. `token` is its name in the vocabulary; `straddles`: across a span's beginning, so untrained."""

    id: int
    token: str
    trained: bool
    weight: float
    document: int
    special: bool
    straddles: bool


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring tokens that are treated alike, as text."""

    text: str
    trained: bool
    weight: float
    document: int
    special: bool
    straddles: bool


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a document comes from: the source's label and the row in it, from 1."""

    source: str
    row: int


@dataclass(frozen=True, slots=True)
class Preview:
    """One sequence: a sample, or a packed row of several documents."""

    tokens: tuple[Token, ...]
    runs: tuple[Run, ...]
    documents: tuple[Origin, ...]
    text: str

    def as_data(self) -> dict[str, Any]:
        """The object of `--format json`, one list entry a token."""
        return {
            "ids": [token.id for token in self.tokens],
            "tokens": [token.token for token in self.tokens],
            "trained": [token.trained for token in self.tokens],
            "weight": [token.weight for token in self.tokens],
            "document": [token.document for token in self.tokens],
            "text": self.text,
        }


def preview(
    prepared: Prepared, *, rows: int = 3, source: int | None = None, bins: Bins | None = None
) -> tuple[Preview, ...]:
    """The first `rows` sequences: of each source, or of one; of `bins`, where they are given, in their order."""
    if source is not None and not 0 <= source < len(prepared.stores):
        last = len(prepared.stores) - 1
        raise DataError(Problem("--source", f"there is no source {source}", help=f"sources are numbered 0 to {last}"))
    if bins is not None:
        return tuple(_packed(prepared, bins, index) for index in _bins_with(prepared, bins, source, rows))
    numbers = range(len(prepared.stores)) if source is None else [source]
    found = [index for number in numbers for index in np.flatnonzero(prepared.source_of == number)[:rows]]
    return tuple(_view(prepared, [(int(index), 0, int(prepared.lengths[index]))]) for index in found)


def _bins_with(prepared: Prepared, bins: Bins, source: int | None, rows: int) -> Iterator[int]:
    found = 0
    for index in range(len(bins)):
        if found == rows:
            return
        pieces = bins.sample[bins.offsets[index] : bins.offsets[index + 1]]
        if source is None or (prepared.source_of[pieces] == source).any():
            found += 1
            yield index


def _packed(prepared: Prepared, bins: Bins, index: int) -> Preview:
    part = slice(bins.offsets[index], bins.offsets[index + 1])
    return _view(prepared, list(zip(bins.sample[part], bins.start[part], bins.length[part], strict=True)))


def _view(prepared: Prepared, pieces: Sequence[tuple[int, int, int]]) -> Preview:
    backend = prepared.tokenizer.backend_tokenizer
    special = {index for index, token in backend.get_added_tokens_decoder().items() if token.special}
    tokens: list[Token] = []
    origins = []
    for document, (sample, start, length) in enumerate(pieces):
        store, row = prepared.stores[prepared.source_of[sample]], prepared.row_of[sample]
        part = slice(store.starts[row] + start, store.starts[row] + start + length)
        ids, flags = store.ids[part].tolist(), store.flags[part]
        weights = flags & TRAINED if store.weights is None else store.weights[part]
        # A piece's first token has nothing before it, whatever it was in its document.
        trained = [place > 0 and bool(flag & TRAINED) for place, flag in enumerate(flags.tolist())]
        tokens += [
            Token(
                id=index,
                token=str(backend.id_to_token(index)),
                trained=trains,
                weight=float(weight) if trains else 0.0,
                document=document,
                special=index in special,
                straddles=bool(flag & STRADDLES),
            )
            for index, trains, weight, flag in zip(ids, trained, weights.tolist(), flags.tolist(), strict=True)
        ]
        origins.append(Origin(str(store.meta["ledger"]["source"]), int(store.rows[row])))
    return Preview(tuple(tokens), tuple(_runs(prepared, tokens)), tuple(origins), _decode(prepared, tokens))


def _runs(prepared: Prepared, tokens: Sequence[Token]) -> Iterator[Run]:
    def alike(token: Token) -> tuple[bool, float, int, bool, bool]:
        return token.trained, token.weight, token.document, token.special, token.straddles

    for key, group in groupby(tokens, key=alike):
        yield Run(_decode(prepared, list(group)), *key)


def _decode(prepared: Prepared, tokens: Sequence[Token]) -> str:
    return str(prepared.tokenizer.decode([token.id for token in tokens], skip_special_tokens=False))
