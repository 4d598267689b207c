"""Documents of any lengths go into groups and blocks, and come back to where they were."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sftctl.engine.model import documents as module
from sftctl.engine.model.documents import Block, Documents, lay_out

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=12)
CPU = torch.device("cpu")


def bounds(lengths: list[int]) -> np.ndarray:
    return np.cumsum([0, *lengths]).astype(np.int32)


def test_the_worked_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_LENGTH", 2)
    layout = lay_out(bounds([3, 2]), 1, device=CPU)
    (group,) = layout.groups
    assert group.blocks == (Block(0, 2, 2), Block(2, 3, 1))
    assert group.queries.index.tolist() == [0, 1, 3, 4, 2]
    assert group.queries.pads.tolist() == []
    assert group.keys.index.tolist() == [0, 1, 2, 3, 4, 3]
    assert group.keys.pads.tolist() == [5]
    assert layout.query_of_TK.tolist() == [0, 1, 4, 2, 3]
    assert layout.key_of_TK.tolist() == [0, 1, 2, 3, 4]


def test_documents_of_very_different_length_are_not_padded_to_one() -> None:
    layout = lay_out(bounds([10, 200, 180, 20]), 1, device=CPU)
    assert [(group.num_documents, group.longest) for group in layout.groups] == [(2, 200), (2, 20)]


def test_heads_of_one_token_lie_apart() -> None:
    """Row t * K + k holds head k of token t; a group takes head after head."""
    layout = lay_out(bounds([3]), 2, device=CPU)
    assert layout.groups[0].keys.index.tolist() == [0, 2, 4, 1, 3, 5]
    assert layout.key_of_TK.tolist() == [0, 3, 1, 4, 2, 5]


@given(lengths=LENGTHS, heads=st.integers(1, 3))
def test_gathered_and_brought_back_every_row_is_itself(lengths: list[int], heads: int) -> None:
    """inverse(gather(rows)) = rows, whatever the lengths, for queries and for keys."""
    layout = lay_out(bounds(lengths), heads, device=CPU)
    rows = torch.arange(sum(lengths) * heads)
    queries = torch.cat([rows[group.queries.index] for group in layout.groups])
    keys = torch.cat([rows[group.keys.index] for group in layout.groups])
    assert torch.equal(queries[layout.query_of_TK], rows)
    assert torch.equal(keys[layout.key_of_TK], rows)


@given(lengths=LENGTHS, heads=st.integers(1, 3))
def test_every_row_is_a_query_once_and_the_rest_are_pads(lengths: list[int], heads: int) -> None:
    for group in lay_out(bounds(lengths), heads, device=CPU).groups:
        for rows in (group.queries, group.keys):
            real = np.delete(rows.index.numpy(), rows.pads.numpy())
            assert len(set(real.tolist())) == len(real)
        assert len(group.queries.index) == heads * sum(b.count * (b.end - b.start) for b in group.blocks)


@given(lengths=LENGTHS)
def test_blocks_cover_each_query_of_each_document_once(lengths: list[int]) -> None:
    """A group's blocks follow each other without a gap, and leave out only documents that have ended."""
    for group in lay_out(bounds(lengths), 1, device=CPU).groups:
        ends = [block.end for block in group.blocks]
        assert [block.start for block in group.blocks] == [0, *ends[:-1]]
        assert ends[-1] == group.longest
        real = np.ones(group.num_documents * group.longest, bool)
        real[group.keys.pads.numpy()] = False
        members = real.reshape(group.num_documents, -1).sum(1)
        assert sorted(members, reverse=True) == members.tolist()
        for block in group.blocks:
            assert block.count == (members > block.start).sum()


def test_documents_know_their_longest_and_how_many_keys_a_query_sees() -> None:
    """1 + 2 + 3 and 1 + 2 keys of 5 queries: 1.8."""
    documents = Documents(bounds([3, 2]))
    assert documents.longest == 3
    assert documents.mean_keys == 1.8
    assert documents.layout(2, CPU) is documents.layout(2, CPU)
    assert documents.bounds(CPU).tolist() == [0, 3, 5]
