"""Documents that share a row get the logits and gradients that they have alone, in every family and layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sftctl.engine.model import attention
from sftctl.engine.model.attention import (
    BY_POSITION,
    VARLEN,
    Documents,
    forward_kwargs,
    implementation_of,
    isolation_self_test,
    looks_ahead,
    resolve_implementation,
)
from sftctl.engine.model.blockwise import Scores, blockwise_attention
from sftctl.engine.model.loading import load_model
from sftctl.errors import ModelError
from sftctl.records import IGNORE_INDEX, Batch
from tests.engine.model.families import FAMILIES, GQA, SIZES, VOCAB, model_of


def row_of(*documents: np.ndarray) -> Batch:
    ids = np.concatenate(documents)[None]
    positions = np.concatenate([np.arange(len(document)) for document in documents])[None]
    bounds = np.cumsum([0, *map(len, documents)]).astype(np.int32)
    return Batch(ids, positions, np.full_like(ids, IGNORE_INDEX), bounds, None, ids.size, 0, ())


def documents(seed: int = 0, lengths: tuple[int, ...] = (9, 3, 14, 1, 6)) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.integers(3, VOCAB, length) for length in lengths]


@pytest.mark.parametrize(
    ("family", "implementation"),
    [(family, "auto") for family in FAMILIES]
    + [
        (family, implementation) for family in ("llama", "mistral", "gemma3_text") for implementation in BY_POSITION[:2]
    ],
)
def test_a_packed_document_has_the_logits_it_has_alone(family: str, implementation: str) -> None:
    model = model_of(family, implementation)
    assert implementation != "auto" or implementation_of(model) == VARLEN
    parts = documents()
    with torch.no_grad():
        packed = model(**forward_kwargs(row_of(*parts), model=model)).logits[0]
        alone = [model(**forward_kwargs(row_of(part), model=model)).logits[0] for part in parts]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradients_are_the_sum_of_the_documents_own(family: str) -> None:
    model = model_of(family)
    parts = documents(1)
    probe = torch.randn(sum(map(len, parts)), VOCAB, generator=torch.Generator().manual_seed(3))
    (model(**forward_kwargs(row_of(*parts), model=model)).logits[0] * probe).sum().backward()
    packed = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    for part, share in zip(parts, probe.split([len(part) for part in parts]), strict=True):
        (model(**forward_kwargs(row_of(part), model=model)).logits[0] * share).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(packed[name], parameter.grad, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_varlen_is_the_attention_of_eager(family: str) -> None:
    """Logits and gradients of one document longer than any window, against Transformers' plain implementation."""
    row = row_of(*documents(lengths=(30,)))
    logits, gradients = [], []
    for implementation in ("auto", "eager"):
        model = model_of(family, implementation)
        logits.append(model(**forward_kwargs(row, model=model)).logits)
        logits[-1].square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)
    for name, expected in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_a_padded_batch_gives_what_a_flat_one_gives() -> None:
    """Rows of 5 with padding as documents of their own: a a a a a | b b b - - against a a a a a b b b."""
    model = model_of("llama")
    first, second = documents(2, lengths=(5, 3))
    padded = Batch(
        input_ids=np.stack([first, np.pad(second, (0, 2))]),
        position_ids=np.array([[0, 1, 2, 3, 4], [0, 1, 2, 0, 1]]),
        labels=np.full((2, 5), IGNORE_INDEX),
        cu_seqlens=np.array([0, 5, 8, 10], np.int32),
        weights=None,
        num_tokens=8,
        num_supervised=0,
        samples=(),
    )
    with torch.no_grad():
        flat = model(**forward_kwargs(row_of(first, second), model=model)).logits[0]
        rows = model(**forward_kwargs(padded, model=model)).logits.flatten(0, 1)[:8]
    torch.testing.assert_close(rows, flat, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gqa_keyword", [True, False])
@pytest.mark.parametrize("family", ["llama", "mistral", "olmo2"])
def test_the_variable_length_kernel_is_called_for_what_it_means(
    family: str, gqa_keyword: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in that takes torch's keywords at their word, against the blockwise path; with 2.11's keywords too."""
    model = model_of(family)
    row = row_of(*documents())
    with torch.no_grad():
        expected = model(**forward_kwargs(row, model=model)).logits

    def stand_in(query, key, value, bounds, same, longest, longest_too, *, scale, window_size, enable_gqa=False):
        assert enable_gqa or query.shape[1] == key.shape[1]
        assert bounds.dtype == torch.int32
        assert longest == longest_too == bounds.diff().max()
        left, right = window_size
        assert right == 0, "causal"
        scores = Scores(scale, window=None if left == -1 else left + 1)
        return blockwise_attention(query, key, value, Documents(bounds.numpy()), scores)

    monkeypatch.setattr(attention, "_kernel_takes", lambda *given: True)
    monkeypatch.setattr(attention, "varlen_attn", stand_in)
    monkeypatch.setattr(attention, "_KERNEL_KEYWORDS", {"enable_gqa"} if gqa_keyword else set())
    with torch.no_grad():
        actual = model(**forward_kwargs(row, model=model)).logits
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_oss"])
def test_on_cuda_documents_get_what_they_get_on_the_cpu(family: str) -> None:
    """float32 by the blockwise path and bf16 by torch's kernel where it applies, against float32 on the CPU."""
    row = row_of(*documents())
    model = model_of(family)
    with torch.no_grad():
        expected = model(**forward_kwargs(row, model=model)).logits
        model.cuda()
        exact = model(**forward_kwargs(row, device="cuda", model=model)).logits
        half = model.bfloat16()(**forward_kwargs(row, device="cuda", model=model)).logits
    torch.testing.assert_close(exact.cpu(), expected, rtol=1e-3, atol=1e-3)
    assert (half.float().cpu() - expected).norm() < 0.05 * expected.norm()
    assert isolation_self_test(model).passed


@pytest.mark.parametrize("family", FAMILIES)
def test_the_self_test_passes_where_documents_are_isolated(family: str) -> None:
    model = model_of(family).train()
    state = torch.get_rng_state()
    report = isolation_self_test(model)
    assert report.passed, report
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def leak(**changes: Any) -> float:
    """How far a logit of document 2 moves when document 1 changes, with one condition of isolation left out."""
    model = model_of("llama", "sdpa")
    first, other, second = documents(lengths=(9, 9, 7))
    logits = []
    for one in (first, other):
        inputs = forward_kwargs(row_of(one, second), model=model) | changes
        with torch.no_grad():
            logits.append(model(**{k: v for k, v in inputs.items() if v is not None}).logits[0, -len(second) :])
    return float((logits[0] - logits[1]).abs().max())


def test_the_traps_leak_and_the_right_call_does_not() -> None:
    """use_cache on, a mask of ones, positions that go on: each alone lets document 1 into document 2."""
    assert leak() <= 1e-6
    assert leak(use_cache=True) > 1e-3
    assert leak(attention_mask=torch.ones(1, 16, dtype=torch.long)) > 1e-3
    assert leak(position_ids=torch.arange(16)[None]) > 1e-3


def test_a_state_space_model_fails_the_self_test() -> None:
    model = load_model(
        name_or_path=None,
        init="random",
        architecture={"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
        vocab_size=VOCAB,
        token_ids={},
        seed=0,
    )
    assert not isolation_self_test(model).passed


def refused(requested: str, family: str = "llama", device: str = "cpu") -> str:
    model = model_of(family)
    with pytest.raises(ModelError) as error:
        resolve_implementation(requested, model=model, device=torch.device(device), dtype=torch.float32)
    return str(error.value)


def test_what_a_machine_or_model_does_not_have_is_refused_with_the_way_out() -> None:
    way_out = '; set model.attn_implementation = "auto"'
    assert refused("flash_attention_2") == (
        "model.attn_implementation: flash_attention_2 runs on CUDA, not on cpu" + way_out
    )
    assert refused("flash_attention_3", device="cuda") == (
        "model.attn_implementation: flash_attention_3 is not installed" + way_out
    )
    with pytest.raises(ModelError, match=r"Gemma2ForCausalLM has no sdpa attention; set model\.attn_implementation"):
        model_of("gemma2", "sdpa")


def test_layers_that_attend_to_chunks_are_left_to_transformers() -> None:
    """Llama 4's layers get their chunks by a mask alone: our function would never hear of them."""
    model = load_model(
        name_or_path=None,
        init="random",
        architecture={"model_type": "llama4_text", "attention_chunk_size": 4, "head_dim": 8, "num_local_experts": 2}
        | {**SIZES, **GQA, "intermediate_size_mlp": 48},
        vocab_size=VOCAB,
    )
    assert implementation_of(model) == "sdpa"
    assert isolation_self_test(model).passed


def test_a_model_that_sees_later_tokens_is_seen() -> None:
    assert not looks_ahead(model_of("gpt_neox"))
    architecture = {"model_type": "bert", **SIZES}
    with pytest.raises(ModelError, match="a bert model sees later tokens: it would learn to copy them; set it to true"):
        load_model(name_or_path=None, init="random", architecture=architecture, vocab_size=VOCAB)
    causal = load_model(
        name_or_path=None, init="random", architecture={**architecture, "is_decoder": True}, vocab_size=VOCAB
    )
    assert not looks_ahead(causal)
