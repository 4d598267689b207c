"""Documents with their common prefixes kept once, put together again: nothing lost, nothing trained twice."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftctl.engine.data import prefixes
from sftctl.engine.data.prefixes import Pieces, share_prefixes
from sftctl.records import IGNORE_INDEX


@pytest.fixture(autouse=True)
def short_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "MIN_TOKENS", 2)


def share(documents: list[list[int]], prompts: list[int]) -> Pieces | None:
    """Documents of which all but the first `prompts[d]` tokens train: so all positions but the first `prompts - 1`."""
    ids = np.concatenate(documents).astype(np.int32)
    edges = np.cumsum([0, *map(len, documents)])
    targets = np.full(len(ids), IGNORE_INDEX)
    for start, end, prompt in zip(edges[:-1], edges[1:], prompts, strict=True):
        targets[start + max(0, prompt - 1) : end - 1] = 7
    return share_prefixes(ids, targets, edges)


def put_together(documents: list[list[int]], pieces: Pieces) -> list[list[int]]:
    """The documents, from the pieces: slow, and plain to see."""
    kept = np.concatenate(documents)[pieces.kept].tolist()
    edges = np.cumsum([0, *pieces.length])
    parts = [kept[start:end] for start, end in pairwise(edges)]
    assert sum(map(len, parts)) == len(kept)
    prefixes = set(pieces.continues.tolist()) - {-1}
    found = []
    for number, part in enumerate(parts):
        before = int(pieces.continues[number])
        assert before < number
        assert before < 0 or pieces.continues[before] < 0, "a prefix continues nothing"
        if number not in prefixes:
            found.append((parts[before] if before >= 0 else []) + part)
    return found


def saved_at_best(documents: list[list[int]], free: list[int]) -> int:
    """By trying every way to cut the sorted documents into runs."""
    heads = sorted(ids[:count] for ids, count in zip(documents, free, strict=True))

    def gain(run: list[list[int]]) -> int:
        common = 0
        while all(len(head) > common for head in run) and len({head[common] for head in run}) == 1:
            common += 1
        return (len(run) - 1) * common if common >= prefixes.MIN_TOKENS else 0

    cuts = [cut for size in range(len(heads)) for cut in combinations(range(1, len(heads)), size)]
    ways = [[0, *cut, len(heads)] for cut in cuts]
    return max(sum(gain(heads[start:end]) for start, end in pairwise(way)) for way in ways)


def test_the_example_of_the_module() -> None:
    """a and c begin with the same two tokens; b has its own."""
    pieces = share([[1, 2, 3, 4, 5], [6, 7], [1, 2, 8, 9]], [4, 1, 3])
    assert pieces is not None
    assert pieces.kept.tolist() == [True] * 7 + [False] * 2 + [True] * 2
    assert pieces.length.tolist() == [2, 3, 2, 2]
    assert pieces.continues.tolist() == [-1, 0, -1, 0]


def test_what_trains_is_not_shared() -> None:
    """The last token of a prompt has the first of the answer as its target: it is no part of a prefix."""
    document = [1, 2, 3, 4, 5]
    assert share([document, document], [1, 1]) is None
    assert share([document, document], [2, 2]) is None
    pieces = share([document, document], [3, 5])
    assert pieces is not None
    assert pieces.length.tolist() == [2, 3, 3]
    untrained = share([document, document], [9, 9])
    assert untrained is not None
    assert untrained.length.tolist() == [4, 1, 1], "a token is left to each"


def test_short_prefixes_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "MIN_TOKENS", 5)
    document = [1, 2, 3, 4, 5, 6, 7]
    assert share([document, document], [5, 5]) is None
    assert share([document, document], [6, 6]) is not None


documents_with_prompts = st.lists(
    st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=9), st.integers(0, 12)), min_size=1, max_size=6
)


@settings(max_examples=150)
@given(drawn=documents_with_prompts)
def test_no_token_is_lost_and_no_other_runs_save_more(drawn: list[tuple[list[int], int]]) -> None:
    """Pieces make up the documents, in their order; prefixes train nothing; the saving is that of the best runs."""
    documents, prompts = [list(ids) for ids, _ in drawn], [prompt for _, prompt in drawn]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefixes, "MIN_TOKENS", 2)
        pieces = share(documents, prompts)
        free = [max(0, min(prompt - 1, len(ids) - 1)) for ids, prompt in zip(documents, prompts, strict=True)]
        best = saved_at_best(documents, free)
    if pieces is None:
        assert best == 0
        return
    assert put_together(documents, pieces) == documents
    assert int((~pieces.kept).sum()) == best > 0
    for before in set(pieces.continues.tolist()) - {-1}:
        users = np.flatnonzero(pieces.continues == before)
        assert len(users) > 1
