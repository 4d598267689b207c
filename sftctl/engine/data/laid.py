"""What trains of the rows as they are used: mixed, held out, laid into bins.

The proof counts whole rows as they were prepared. What a mixture leaves out, what is held out, and what packing cuts
(a piece is a document of its own, and its first token is no target) is known only when the bins are. So the rows are
looked at once more, until every source has shown a target and a trained stop token: a few rows, unless one has none.

    rows of 9 tokens, the 9th alone trains, cut every 8: the second piece is that token, and nothing trains
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sftctl.engine.data.prepare import Prepared
from sftctl.engine.data.proof import MaskProof, SourceProof
from sftctl.engine.data.store import STOPS, TRAINED, Store
from sftctl.errors import DataError, Origin, Problem
from sftctl.records import Bins

BLOCK_PIECES = 256
AS_BFD = 'packing cuts them off: raise sft.max_length, or set sft.packing_strategy = "bfd"'
AS_DRAWN = "the rows that have one are not among those that train: see fraction, weight and data.test_split_size"


def proven(
    rows: Prepared, bins: Bins, *, on_mask_problem: Literal["error", "warn"], sources: Sequence[int] | None = None
) -> Prepared:
    """The rows with what else their proof finds, now that they lie in `bins`.

    `sources` are those to look at, all of them by default. Raises DataError with the violations, if any, unless
    `on_mask_problem` is "warn".
    """
    checked = range(len(rows.stores)) if sources is None else sources
    found = [problem for number in checked for problem in _violations(rows, bins, number)]
    if not found:
        return rows
    if on_mask_problem == "error":
        raise DataError(*found)
    return replace(rows, proof=MaskProof(rows.proof.sources, (*rows.proof.violations, *found)))


def trained_at_cuts(rows: Prepared, bins: Bins) -> int:
    """How many targets of the rows packing made the first token of a piece, which is none."""
    later = np.flatnonzero(bins.start)
    sample, start = bins.sample[later], bins.start[later]
    lost = 0
    for number, store in enumerate(rows.stores):
        mine = rows.source_of[sample] == number
        lost += int((store.flags[store.starts[rows.row_of[sample[mine]]] + start[mine]] & TRAINED).sum())
    return lost


def _violations(rows: Prepared, bins: Bins, number: int) -> list[Problem]:
    """Of one source, beside those that its proof has."""
    proof = rows.proof.sources[number]
    if not proof.rows_used:
        return []
    pieces, trains, stops, cut = _seen(rows, bins, number)
    if trains and (stops or not proof.rows_stop_trained):
        return []
    if not pieces:
        what, help = "none of its rows is among those that train", "hold out fewer rows, or leave the source out"
    elif not trains:
        what, help = "packing cuts its rows so that every target begins a piece, which is none then", AS_BFD
    else:
        return [_problem(proof, _no_stop(proof), AS_BFD if cut else AS_DRAWN)]
    return [_problem(proof, f"nothing of this source trains: {what}", help)]


def _no_stop(proof: SourceProof) -> str:
    stops, trained = ", ".join(proof.stop_tokens), proof.rows_stop_trained
    return (
        f"none of the stop tokens ({stops}) trains in the rows as they are used, though in {trained} as they are read"
    )


def _problem(proof: SourceProof, what: str, help: str) -> Problem:
    return Problem(proof.where, what, Origin("data", proof.source), help)


def _seen(rows: Prepared, bins: Bins, number: int) -> tuple[bool, bool, bool, bool]:
    """Of one source: whether it has a piece, a target, a trained stop token, a piece cut from within its row."""
    pieces = trains = stops = cut = False
    for begin in range(0, len(bins.sample), BLOCK_PIECES):
        part = slice(begin, begin + BLOCK_PIECES)
        mine = rows.source_of[bins.sample[part]] == number
        if mine.any():
            sample, start, length = bins.sample[part][mine], bins.start[part][mine], bins.length[part][mine]
            flags = _targets(rows.stores[number], rows.row_of[sample], start, length)
            pieces, cut = True, cut or bool(start.any())
            trains = trains or bool((flags & TRAINED).any())
            stops = stops or bool(((flags & TRAINED > 0) & (flags & STOPS > 0)).any())
            if trains and stops:
                break
    return pieces, trains, stops, cut


def _targets(
    store: Store, row: NDArray[np.int32], start: NDArray[np.int32], length: NDArray[np.int32]
) -> NDArray[np.uint8]:
    """The flags of all tokens of these pieces but the first of each."""
    count = length.astype(np.int64) - 1
    begin = store.starts[row] + start + 1
    return np.asarray(store.flags[np.arange(count.sum()) + np.repeat(begin - np.cumsum(count) + count, count)])
