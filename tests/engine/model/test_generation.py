"""Greedy answers: those of Transformers one prompt at a time, cut at the first stop token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sftctl.engine.model.attention import set_implementation
from sftctl.engine.model.generation import _batches, greedy
from sftctl.engine.model.loading import load_model

VOCAB = 61


def tiny(**fields: Any) -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    if fields.get("model_type") == "mamba":
        sizes = {"hidden_size": 32, "num_hidden_layers": 2}
    else:
        sizes["num_key_value_heads"] = 2
    model = load_model(
        name_or_path=None,
        init="random",
        architecture={"model_type": "llama", **sizes, **fields},
        vocab_size=VOCAB,
        token_ids={"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0},
        seed=0,
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and "A_log" not in name:
                parameter.mul_(5)  # far from the near-uniform start, so that answers differ
    return model


def prompts_of(*lengths: int, seed: int = 4) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.integers(3, VOCAB, length) for length in lengths]


CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "windows": {"model_type": "mistral", "sliding_window": 4, "head_dim": 8},
    "caps and both kinds of layers": {"model_type": "gemma2", "sliding_window": 4, "head_dim": 8},
    "sinks": {"model_type": "gpt_oss", "sliding_window": 4, "head_dim": 8, "num_local_experts": 4},
    "state space": {"model_type": "mamba", "state_size": 4},
}


@pytest.mark.parametrize("batch_size", [1, 2, 6])
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_answers_are_those_of_transformers(name: str, batch_size: int) -> None:
    """Against `generate` one prompt at a time; a stop token ends an answer and is part of it."""
    model = tiny(**CONFIGS[name]).train()
    prompts = prompts_of(5, 8, 5, 3, 8, 1)
    answers = greedy(model, prompts, max_new_tokens=12, stop_token_ids=(2, 7), batch_size=batch_size)
    assert model.training
    model.eval()
    set_implementation(model, "eager")
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.from_numpy(prompt)[None]
        mask = torch.ones_like(ids)
        expected = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=12, eos_token_id=[2, 7])
        assert answer.tolist() == expected[0, len(prompt) :].tolist()


def test_prompts_of_like_length_are_answered_together() -> None:
    assert list(_batches([3, 5, 3], 2, mixed=True)) == [[0, 2], [1]]
    assert list(_batches([3, 5, 3], 3, mixed=True)) == [[0, 2, 1]]
    assert list(_batches([3, 5, 3], 3, mixed=False)) == [[0, 2], [1]]
    assert list(_batches([3, 3, 3], 2, mixed=False)) == [[0, 1], [2]]
    assert list(_batches([], 2, mixed=True)) == []


def test_answers_stop_where_they_should() -> None:
    model = tiny()
    prompt = prompts_of(6)
    (free,) = greedy(model, prompt, max_new_tokens=6, stop_token_ids=(), batch_size=1)
    assert len(free) == 6
    (cut,) = greedy(model, prompt, max_new_tokens=6, stop_token_ids=(int(free[2]),), batch_size=1)
    assert cut.tolist() == free[: free.tolist().index(free[2]) + 1].tolist()
