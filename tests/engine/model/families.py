"""Tiny random models of families whose attention differs, for the tests of attention and of shared prefixes."""

from __future__ import annotations

from typing import Any

import torch

from sftctl.engine.model.loading import load_model

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VOCAB = 61
GQA = {"num_key_value_heads": 2}
EXPERTS = {"num_experts_per_tok": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": GQA,
    "qwen3": GQA | {"head_dim": 8},
    "mistral": GQA | {"sliding_window": 4},
    "gemma2": GQA | {"head_dim": 8, "sliding_window": 4, "attn_logit_softcapping": 0.5},
    "gemma3_text": GQA | {"head_dim": 8, "sliding_window": 4, "sliding_window_pattern": 2},
    "phi": {},
    "phi3": GQA | {"sliding_window": 5},
    "olmo": GQA,
    "olmo2": GQA,
    "gpt_oss": GQA | EXPERTS | {"head_dim": 8, "sliding_window": 4, "num_local_experts": 4},
    "mixtral": GQA | EXPERTS | {"num_local_experts": 4},
    "qwen3_moe": GQA | EXPERTS | {"num_experts": 4, "moe_intermediate_size": 16},
    "gpt_neox": {},
}
"""What sets each apart: grouped keys, windows, soft-capped scores, sinks (gpt_oss), experts, partial rotation (phi)."""


def model_of(family: str, attn_implementation: str = "auto") -> Any:
    architecture = {"model_type": family} | SIZES | FAMILIES[family]
    model = load_model(
        name_or_path=None,
        init="random",
        architecture=architecture,
        vocab_size=VOCAB,
        token_ids={"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0},
        attn_implementation=attn_implementation,
        seed=0,
    ).eval()
    with torch.no_grad():  # drawn with a deviation of 0.02, attention hardly tells one key from another
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(5)
    return model
