"""A micro-batch that keeps common prefixes once trains as one that repeats them, in every family."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sftctl.engine.data import prefixes
from sftctl.engine.data.collate import collate
from sftctl.engine.data.packing import pack
from sftctl.engine.model import attention
from sftctl.engine.model.attention import forward_kwargs
from sftctl.engine.model.blockwise import Scores, blockwise_attention
from sftctl.engine.model.documents import Documents
from sftctl.engine.model.head import find_head
from sftctl.engine.model.sharing import kernel_agrees, model_agrees, random_rates, reason_against
from sftctl.engine.training.losses import linear_cross_entropy
from sftctl.records import IGNORE_INDEX, Batch, Sample
from tests.engine.model.families import FAMILIES, VOCAB, model_of


@dataclass
class Rows:
    samples: list[Sample]

    def sample(self, index: int, /) -> Sample:
        return self.samples[index]


def rows_of(drawn: list[tuple[int, int, int]], *, seed: int) -> Rows:
    """Documents of a prefix (0: none; else one of two), a question and an answer, which trains, weighted."""
    draw = np.random.default_rng(seed)
    heads = [np.empty(0, np.int64), draw.integers(3, VOCAB, 5), draw.integers(3, VOCAB, 11)]
    samples = []
    for head, asked, answered in drawn:
        ids = np.concatenate([heads[head], draw.integers(3, VOCAB, asked + answered)]).astype(np.int32)
        labels = ids.copy()
        labels[: len(ids) - answered] = IGNORE_INDEX
        samples.append(Sample(ids, labels, draw.uniform(0.5, 2.0, len(ids)).astype(np.float32)))
    return Rows(samples)


def batch_of(rows: Rows, *, share_prefix: bool, multiple: int | None = None) -> Batch:
    bins = pack(np.array([len(sample.input_ids) for sample in rows.samples]), 40, "bfd")
    return collate(
        rows,
        bins,
        range(len(bins)),
        padding_free=True,
        pad_token_id=0,
        pad_to_multiple_of=multiple,
        share_prefix=share_prefix,
    )


def loss_and_gradients(model: Any, batch: Batch, *, loss_type: str) -> dict[str, torch.Tensor]:
    head = find_head(model)
    assert head is not None
    assert batch.weights is not None
    hidden = head.backbone(**forward_kwargs(batch, model=model)).last_hidden_state
    labels, weights = torch.from_numpy(batch.labels), torch.from_numpy(batch.weights)
    sums = linear_cross_entropy(hidden, head, labels, weights, loss_type=loss_type)
    model.zero_grad()
    sums.loss.backward()
    figures = {"loss": sums.loss.detach(), "correct": sums.num_correct, "entropy": sums.entropy}
    return figures | {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


_model_of = cache(model_of)

drawn_rows = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=8)


@settings(max_examples=40)
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    drawn=drawn_rows,
    seed=st.integers(0, 99),
    multiple=st.sampled_from([None, 8]),
    loss_type=st.sampled_from(["nll", "dft"]),
)
def test_loss_and_every_gradient_are_those_without_sharing(
    family: str, drawn: list[tuple[int, int, int]], seed: int, multiple: int | None, loss_type: str
) -> None:
    """Whatever the family (windows, soft-caps, sinks, experts), the documents and their prefixes: float32, 1e-5."""
    model, rows = _model_of(family), rows_of(drawn, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefixes, "MIN_TOKENS", 3)
        shared, plain = (batch_of(rows, share_prefix=each, multiple=multiple) for each in (True, False))
    heads = [head for head, *_ in drawn if head]
    assert (shared.continues is not None) == (len(heads) > len(set(heads)))
    assert (shared.num_tokens, shared.num_supervised) == (plain.num_tokens, plain.num_supervised)
    expected = loss_and_gradients(model, plain, loss_type=loss_type)
    for name, actual in loss_and_gradients(model, shared, loss_type=loss_type).items():
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(actual, expected[name], rtol=1e-5, atol=max(1e-5, 1e-5 * scale), msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_documents_after_one_prefix_do_not_see_each_other(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another question in the first document moves its own hidden states and no bit of the second's."""
    monkeypatch.setattr(prefixes, "MIN_TOKENS", 3)
    model = _model_of(family)
    rows = rows_of([(2, 6, 4), (2, 5, 3), (0, 4, 4)], seed=1)
    changed = Rows([*rows.samples])
    ids = rows.samples[0].input_ids.copy()
    ids[11:17] = (ids[11:17] + 7) % VOCAB
    changed.samples[0] = Sample(ids, rows.samples[0].labels, rows.samples[0].weights)
    with torch.no_grad():
        one, other = (
            model(**forward_kwargs(batch_of(each, share_prefix=True), model=model)).logits[0]
            for each in (rows, changed)
        )
    batch = batch_of(rows, share_prefix=True)
    assert batch.continues is not None
    number = next(d for d in range(len(batch.continues)) if batch.cu_seqlens[d + 1] - batch.cu_seqlens[d] == 10)
    assert batch.continues[number] >= 0
    moved = (one - other).abs().amax(1) > 1e-6
    own = np.zeros(len(moved), dtype=bool)
    own[batch.cu_seqlens[number] : batch.cu_seqlens[number + 1]] = True
    assert moved.numpy()[own].any()
    assert not moved.numpy()[~own].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_self_test_passes_in_every_family(family: str) -> None:
    assert reason_against(_model_of(family), rates={}, balances=False, compute_dtype=None) is None


def test_the_self_test_sees_documents_that_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attention function that takes what follows a prefix for one document."""

    def leaking(query: Any, key: Any, value: Any, documents: Documents, *rest: Any) -> Any:
        return blockwise_attention(query, key, value, Documents(documents.cu_seqlens[[0, -1]]), *rest)

    monkeypatch.setattr(attention, "blockwise_attention", leaking)
    assert not model_agrees(_model_of("llama"))


def test_the_self_test_sees_a_prefix_that_is_not_attended(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(query: Any, key: Any, value: Any, documents: Documents, *rest: Any) -> Any:
        return blockwise_attention(query, key, value, Documents(documents.cu_seqlens), *rest)

    monkeypatch.setattr(attention, "blockwise_attention", forgetful)
    assert not model_agrees(_model_of("llama"))


def test_what_stands_against_sharing_is_named() -> None:
    def reason(model: Any, rates: dict[str, float] | None = None, *, balances: bool = False) -> str | None:
        return reason_against(model, rates=rates or {}, balances=balances, compute_dtype=None)

    llama = _model_of("llama")
    assert reason(model_of("llama", "sdpa")) == "sdpa attention does not know what a document goes on from"
    assert reason(llama, {"attention_dropout": 0.1}) == (
        "each copy of a prefix draws random numbers of its own (attention_dropout = 0.1)"
    )
    assert reason(llama, balances=True) == "the loss that balances experts counts each copy of a prefix"
    assert random_rates(_model_of("llama").config) == {}
    assert random_rates(model_of("phi").config) == {}


def stand_in(lined_up: bool) -> Any:
    """torch's kernel, its keywords taken at their word: the last query at the last key; or, wrongly, first at first."""

    def kernel(query, key, value, bounds, key_bounds, longest, most_keys, *, scale, window_size, enable_gqa):
        assert longest == bounds.diff().max()
        assert most_keys == key_bounds.diff().max()
        assert (enable_gqa, window_size) == (True, (-1, 0))
        outs = []
        for (start, end), (first, last) in zip(_pairs(bounds), _pairs(key_bounds), strict=True):
            keys, values = (each[first:last].repeat_interleave(2, dim=1) for each in (key, value))
            logits = torch.einsum("qhd,khd->hqk", query[start:end], keys) * scale
            shift = (last - first) - (end - start) if lined_up else 0
            hidden = torch.ones(logits.shape[1:], dtype=torch.bool).triu(1 + shift)
            outs.append(torch.einsum("hqk,khd->qhd", logits.masked_fill(hidden, -np.inf).softmax(-1), values))
        return torch.cat(outs)

    return kernel


@pytest.mark.parametrize("lined_up", [True, False])
def test_the_kernel_s_test_tells_how_queries_are_lined_up(lined_up: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "varlen_attn", stand_in(lined_up))
    monkeypatch.setattr(attention, "_KERNEL_KEYWORDS", {"enable_gqa"})
    assert kernel_agrees(torch.device("cpu"), torch.bfloat16) == lined_up


def test_a_kernel_that_is_not_there_does_not_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*given: Any, **keywords: Any) -> Any:
        raise RuntimeError("not compiled with this kernel")

    monkeypatch.setattr(attention, "varlen_attn", missing)
    assert not kernel_agrees(torch.device("cpu"), torch.bfloat16)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_torch_s_kernel_lines_queries_up_with_the_last_keys() -> None:
    assert kernel_agrees(torch.device("cuda"), torch.bfloat16)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_the_kernel_gives_what_the_blockwise_path_gives(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model through a stand-in for the kernel, windows included."""
    monkeypatch.setattr(prefixes, "MIN_TOKENS", 3)
    model, batch = (
        _model_of(family),
        batch_of(rows_of([(2, 6, 4), (2, 9, 3), (1, 4, 4), (1, 7, 2)], seed=1), share_prefix=True),
    )
    expected = loss_and_gradients(model, batch, loss_type="nll")

    def kernel(query, key, value, bounds, key_bounds, longest, most_keys, *, scale, window_size, enable_gqa):
        """Each document's queries at the end of its keys, by the blockwise path with the rows before them empty."""
        outs = []
        for (start, end), (first, last) in zip(_pairs(bounds), _pairs(key_bounds), strict=True):
            padded = torch.cat([query.new_zeros(last - first - (end - start), *query.shape[1:]), query[start:end]])
            window = None if window_size[0] == -1 else window_size[0] + 1
            whole = Documents(np.array([0, last - first], np.int32))
            out = blockwise_attention(padded, key[first:last], value[first:last], whole, Scores(scale, window=window))
            outs.append(out[start - end :])
        return torch.cat(outs)

    monkeypatch.setattr(attention, "_kernel_takes", lambda *given: True)
    monkeypatch.setattr(attention, "varlen_attn", kernel)
    monkeypatch.setattr(attention, "_KERNEL_KEYWORDS", {"enable_gqa"})
    for name, actual in loss_and_gradients(model, batch, loss_type="nll").items():
        torch.testing.assert_close(actual, expected[name], rtol=1e-4, atol=1e-4, msg=name)


def _pairs(bounds: torch.Tensor) -> list[tuple[int, int]]:
    return list(zip(bounds.tolist()[:-1], bounds.tolist()[1:], strict=True))
