"""Documents that share a row get the logits and gradients that they have alone, in every family and layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sftctl.engine.model.attention import (
    VARLEN,
    Documents,
    forward_kwargs,
    implementation_of,
    isolation_self_test,
    set_implementation,
)
from sftctl.engine.model.generation import greedy
from sftctl.engine.model.loading import load_model
from sftctl.records import IGNORE_INDEX, Batch

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VOCAB = 61
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "num_key_value_heads": 2},
    "qwen3": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 8},
    "mistral, sliding window": {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 4},
    "gemma2, soft-capped": {"model_type": "gemma2", "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4},
    "phi": {"model_type": "phi"},
    "olmo2": {"model_type": "olmo2", "num_key_value_heads": 2},
}


def model_of(family: str, attn_implementation: str = "auto") -> Any:
    architecture = SIZES | FAMILIES[family]
    return load_model(
        name_or_path=None,
        init="random",
        architecture=architecture,
        vocab_size=VOCAB,
        token_ids={"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0},
        attn_implementation=attn_implementation,
        seed=0,
    ).eval()


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
    [
        (family, implementation)
        for family in FAMILIES
        for implementation in ("auto", "sdpa", "eager")
        if (family, implementation) != ("gemma2, soft-capped", "sdpa")  # SDPA knows no soft-cap
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


def test_varlen_is_the_attention_of_eager() -> None:
    ours, theirs = model_of("llama"), model_of("llama", "eager")
    row = row_of(*documents(lengths=(30,)))
    with torch.no_grad():
        actual, expected = (m(**forward_kwargs(row, model=m)).logits for m in (ours, theirs))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


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


def test_documents_of_rows_are_the_rows() -> None:
    assert Documents.rows(2, 3).cu_seqlens.tolist() == [0, 3, 6]


def test_greedy_answers_are_those_of_transformers() -> None:
    """Against `generate` one prompt at a time, without a batch; stop tokens end an answer and are part of it."""
    model = model_of("llama")
    prompts = documents(4, lengths=(5, 8, 5, 3, 8, 5))
    answers = greedy(model, prompts, max_new_tokens=12, stop_token_ids=(2, 7), batch_size=2)
    set_implementation(model, "eager")
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.from_numpy(prompt)[None]
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, eos_token_id=[2, 7]
        )
        assert answer.tolist() == expected[0, len(prompt) :].tolist()


def test_answers_stop_where_they_should() -> None:
    model = model_of("llama")
    prompt = documents(5, lengths=(6,))
    (free,) = greedy(model, prompt, max_new_tokens=6, stop_token_ids=(), batch_size=1)
    assert len(free) == 6
    (cut,) = greedy(model, prompt, max_new_tokens=6, stop_token_ids=(int(free[2]),), batch_size=1)
    assert cut.tolist() == free[: free.tolist().index(free[2]) + 1].tolist()
