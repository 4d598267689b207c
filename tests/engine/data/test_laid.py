"""What trains of rows as they are used: after mixing, holding out and packing, where whole rows say nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftctl.engine.data.laid import BLOCK_PIECES, proven, trained_at_cuts
from sftctl.engine.data.packing import PACKERS, one_each, pack
from sftctl.engine.data.prepare import Prepared, Source, prepare
from sftctl.engine.model.tokenizer import byte_tokenizer
from sftctl.errors import DataError
from sftctl.records import Bins

TOKENIZER = byte_tokenizer()
Write = Callable[..., str]


def refused(rows: Prepared, bins: Bins) -> str:
    with pytest.raises(DataError) as error:
        proven(rows, bins, on_mask_problem="error")
    (problem,) = error.value.problems
    assert proven(rows, bins, on_mask_problem="warn").proof.violations == (problem,)
    return str(error.value)


@pytest.mark.parametrize("strategy", ["bfd_split", "wrapped"])
def test_a_target_that_begins_a_piece_is_none(write_rows: Write, strategy: str) -> None:
    """Rows of 8 tokens and the end, cut every 8: the end is a piece of its own."""
    rows = prepare([Source(write_rows([{"prompt": "abcdefgh", "completion": ""}]))], tokenizer=TOKENIZER)
    said = refused(rows, pack(rows.lengths, 8, strategy))
    assert "data.datasets[0]: nothing of this source trains: packing cuts its rows so that every target begins" in said
    assert proven(rows, pack(rows.lengths, 9, strategy), on_mask_problem="error") is rows


@pytest.mark.parametrize("strategy", ["bfd_split", "wrapped"])
def test_a_stop_token_that_begins_a_piece_does_not_train(write_rows: Write, strategy: str) -> None:
    rows = prepare([Source(write_rows([{"text": "abcdefgh"}]))], tokenizer=TOKENIZER, max_length=None)
    bins = pack(rows.lengths, 8, strategy)
    said = refused(rows, bins)
    assert "none of the stop tokens (<|im_end|>) trains in the rows as they are used, though in 1 as they are" in said
    assert 'sft.packing_strategy = "bfd"' in said
    assert trained_at_cuts(rows, bins) == 1


def test_a_mixture_that_leaves_out_the_rows_with_a_stop_token(write_rows: Write) -> None:
    """The first three rows are cut, and a share takes no others."""
    many = write_rows([{"text": "x" * 17}] * 3 + [{"text": "y"}] * 10)
    sources = [Source(many, fraction=0.75), Source(write_rows([{"text": "z"}], "one.jsonl"), fraction=0.25)]
    rows = prepare(sources, tokenizer=TOKENIZER, max_length=16)
    assert rows.proof.sources[0].rows_stop_trained == 10
    said = refused(rows, one_each(rows.lengths))
    assert "data.datasets[0]: none of the stop tokens (<|im_end|>) trains in the rows as they are used" in said
    assert "data.test_split_size" in said


def test_a_source_that_is_held_out_whole(write_rows: Write) -> None:
    paths = [
        write_rows([{"text": f"{name}{n}"} for n in range(count)], f"{name}.jsonl")
        for name, count in (("a", 9), ("b", 1))
    ]
    rows = prepare([Source(path) for path in paths], tokenizer=TOKENIZER)
    rows = rows.select(np.flatnonzero(rows.source_of == 0))
    said = refused(rows, one_each(rows.lengths))
    assert "data.datasets[1]: nothing of this source trains: none of its rows is among those that train" in said
    assert "hold out fewer rows" in said


def test_a_problem_is_found_behind_many_pieces(write_rows: Write) -> None:
    """And the one row that has no problem is found there too."""
    count = BLOCK_PIECES + 5
    texts = [{"text": "x" * 20}] * count
    rows = prepare([Source(write_rows([*texts, {"text": "y"}]))], tokenizer=TOKENIZER, max_length=16)
    assert proven(rows, one_each(rows.lengths), on_mask_problem="error") is rows
    some = rows.select(np.arange(count))
    assert "none of the stop tokens" in refused(some, one_each(some.lengths))


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    max_length=st.integers(2, 9),
    strategy=st.sampled_from(sorted(PACKERS)),
)
def test_what_is_found_is_what_a_batch_trains(
    tmp_path_factory: Any, lengths: list[int], max_length: int, strategy: str
) -> None:
    """Against the labels of each piece, one by one: a target, a trained stop token, and the targets lost at cuts."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(f'{{"text": "{"x" * length}"}}\n' for length in lengths))
    cuts = strategy != "bfd"
    rows = prepare(
        [Source(str(path))],
        tokenizer=TOKENIZER,
        max_length=None if cuts else max_length,
        on_mask_problem="warn",
    )
    bins = pack(rows.lengths, max_length, strategy)
    pieces = [
        rows.sample(sample).labels[start : start + length]
        for sample, start, length in zip(bins.sample.tolist(), bins.start.tolist(), bins.length.tolist(), strict=True)
    ]
    targets = np.concatenate([piece[1:] for piece in pieces])
    found = {problem.message[:20] for problem in proven(rows, bins, on_mask_problem="warn").proof.violations}
    trains, stops = (targets >= 0).any(), (targets == TOKENIZER.eos_token_id).any()
    assert ("nothing of this sour" in found) == (not trains)
    if trains:
        assert ("none of the stop tok" in found) == (not stops)
    whole = sum(int((rows.sample(index).labels >= 0).sum()) for index in range(len(rows)))
    if cuts:
        assert trained_at_cuts(rows, bins) == whole - int((targets >= 0).sum())
