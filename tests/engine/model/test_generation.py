"""Greedy answers: those of Transformers one prompt at a time, cut at the first stop token."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sftctl.engine.model.attention import set_implementation
from sftctl.engine.model.generation import greedy
from sftctl.engine.model.loading import load_model

VOCAB = 61


def tiny(**fields: Any) -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return load_model(
        name_or_path=None,
        init="random",
        architecture={"model_type": "llama", "num_key_value_heads": 2, **sizes, **fields},
        vocab_size=VOCAB,
        token_ids={"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0},
        seed=0,
    ).eval()


def prompts_of(*lengths: int, seed: int = 4) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.integers(3, VOCAB, length) for length in lengths]


def test_greedy_answers_are_those_of_transformers() -> None:
    """Against `generate` one prompt at a time, without a batch; stop tokens end an answer and are part of it."""
    model = tiny()
    prompts = prompts_of(5, 8, 5, 3, 8, 5)
    answers = greedy(model, prompts, max_new_tokens=12, stop_token_ids=(2, 7), batch_size=2)
    set_implementation(model, "eager")
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.from_numpy(prompt)[None]
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, eos_token_id=[2, 7]
        )
        assert answer.tolist() == expected[0, len(prompt) :].tolist()


def test_answers_stop_where_they_should() -> None:
    model = tiny()
    prompt = prompts_of(6)
    (free,) = greedy(model, prompt, max_new_tokens=6, stop_token_ids=(), batch_size=1)
    assert len(free) == 6
    (cut,) = greedy(model, prompt, max_new_tokens=6, stop_token_ids=(int(free[2]),), batch_size=1)
    assert cut.tolist() == free[: free.tolist().index(free[2]) + 1].tolist()
