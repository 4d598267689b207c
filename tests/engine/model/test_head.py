"""Heads of tiny models of many families, against the models' own logits."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from sftctl.engine.model.head import (
    Head,
    evaluation_mode,
    find_head,
    find_router,
    head_self_test,
)
from sftctl.engine.training.balancing import router_aux_loss
from sftctl.engine.training.losses import linear_cross_entropy


def tiny(model_type: str, *, dtype: torch.dtype = torch.float32, **fields: Any) -> Any:
    """A random model of two layers and 32 dimensions; logits large enough to tell heads apart."""
    shape = {
        "vocab_size": 67,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **shape | fields)
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


GPT = {"n_embd": 32, "n_head": 4, "n_layer": 2}
FAMILIES = {
    "llama": ("llama", {}, 1.0, None, False),
    "llama tied": ("llama", {"tie_word_embeddings": True}, 1.0, None, False),
    "qwen3": ("qwen3", {}, 1.0, None, False),
    "phi, a bias": ("phi", {}, 1.0, None, True),
    "gpt2": ("gpt2", GPT, 1.0, None, False),
    "gptj, a bias": ("gptj", GPT | {"rotary_dim": 4}, 1.0, None, True),
    "gemma2, soft-capped": ("gemma2", {"final_logit_softcapping": 3.0}, 1.0, 3.0, False),
    "gemma3": ("gemma3_text", {}, 1.0, None, False),
    "cohere multiplies": ("cohere", {"logit_scale": 0.3}, 0.3, None, False),
    "granite divides": ("granite", {"logits_scaling": 4.0}, 0.25, None, False),
    "hyperclovax multiplies": ("hyperclovax", {"logits_scaling": 4.0}, 4.0, None, False),
    "minicpm3 divides": (
        "minicpm3",
        {"q_lora_rank": 16, "kv_lora_rank": 16, "num_key_value_heads": 4},
        8.0,
        None,
        False,
    ),
    "mixtral": ("mixtral", {}, 1.0, None, False),
    "olmo2": ("olmo2", {}, 1.0, None, False),
    "opt": ("opt", {"word_embed_proj_dim": 32, "ffn_dim": 48}, 1.0, None, False),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_s_head_gives_its_logits(family: str) -> None:
    model_type, fields, scale, softcap, bias = FAMILIES[family]
    model = tiny(model_type, **fields)
    head = find_head(model)
    assert head is not None
    assert (head.scale, head.softcap, head.bias is not None) == (scale, softcap, bias)
    assert head.weight is model.get_output_embeddings().weight
    report = head_self_test(model, head)
    assert report.fused, report.reason
    assert report.max_difference <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_tolerance_for_each_dtype(dtype: torch.dtype) -> None:
    model = tiny("granite", logits_scaling=3.0, dtype=dtype)
    assert head_self_test(model, find_head(model)).fused


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("model_type", "fields", "wrong"),
    [
        ("granite", {"logits_scaling": 4.0}, {"scale": 1.0}),
        ("cohere", {"logit_scale": 0.9}, {"scale": 1.0}),
        ("gemma2", {"final_logit_softcapping": 0.1}, {"softcap": None}),
        ("gptj", GPT | {"rotary_dim": 4}, {"bias": torch.full((67,), 0.3)}),
    ],
)
def test_a_wrong_head_falls_back_and_says_why(
    model_type: str, fields: dict[str, Any], wrong: dict[str, Any], dtype: torch.dtype
) -> None:
    """A scale forgotten, a soft-cap forgotten, a bias that is not the model's: none passes, in bf16 neither."""
    model = tiny(model_type, dtype=dtype, **fields)
    head = find_head(model)
    assert head is not None
    parts = {"backbone": head.backbone, "weight": head.weight, "bias": head.bias, "softcap": head.softcap}
    broken = {key: value.to(dtype) if isinstance(value, torch.Tensor) else value for key, value in wrong.items()}
    report = head_self_test(model, Head(**parts | {"scale": head.scale} | broken))
    assert not report.fused
    assert report.max_difference > report.tolerance
    assert report.reason.startswith("its logits differ from the model's by ")


def test_a_model_that_changes_its_logits_afterwards_falls_back() -> None:
    """What no field of the config tells is found by computing."""
    model = tiny("llama")
    forward = model.forward

    def sharpened(**inputs: Any) -> Any:
        outputs = forward(**inputs)
        outputs.logits = outputs.logits * 1.1
        return outputs

    model.forward = sharpened
    assert not head_self_test(model, find_head(model)).fused


def test_not_finite_falls_back() -> None:
    model = tiny("llama")
    model.lm_head.weight.detach()[3].fill_(float("nan"))
    assert not head_self_test(model, find_head(model)).fused


def test_an_output_that_is_not_linear_falls_back() -> None:
    model = tiny("llama")
    model.set_output_embeddings(nn.Sequential(nn.Linear(32, 67), nn.ReLU()))
    assert find_head(model) is None
    assert head_self_test(model, None).reason == "the output layer is not one plain linear layer over a backbone"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # asked for by peft 0.21
class TestPeft:
    def test_an_adapter_in_the_backbone_leaves_the_head(self) -> None:
        model = get_peft_model(tiny("llama"), LoraConfig(target_modules=["q_proj"]))
        nn.init.normal_(model.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight)
        head = find_head(model)
        assert head is not None
        assert not head.weight.requires_grad
        assert head_self_test(model, head).fused
        hidden = head.backbone(input_ids=torch.tensor([[3, 4, 5]]), use_cache=False).last_hidden_state
        linear_cross_entropy(hidden, head, torch.tensor([4, 5, 6])).loss.backward()
        adapter = model.base_model.model.model.layers[0].self_attn.q_proj.lora_A["default"].weight
        assert adapter.grad is not None
        assert adapter.grad.any()

    def test_an_adapter_in_the_head_takes_full_logits(self) -> None:
        model = get_peft_model(tiny("llama"), LoraConfig(target_modules=["q_proj", "lm_head"]))
        assert find_head(model) is None

    def test_a_head_trained_whole_is_the_copy_that_trains(self) -> None:
        model = get_peft_model(tiny("llama"), LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
        head = find_head(model)
        assert head is not None
        assert head.weight.requires_grad
        assert head_self_test(model, head).fused


def test_the_self_test_leaves_the_model_as_it_was() -> None:
    """Modes, gradients and the global random state."""
    model = tiny("llama", attention_dropout=0.5)
    model.train()
    model.model.layers[1].eval()
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    assert head_self_test(model, find_head(model)).fused  # dropout would tell two passes apart
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_evaluation_mode_comes_back_after_an_error() -> None:
    module = nn.Dropout()
    with contextlib.suppress(ValueError), evaluation_mode(module):
        assert not module.training
        raise ValueError
    assert module.training


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("mixtral", {"num_local_experts": 4}),
        ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
        ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    ],
)
def test_a_mixture_s_router_gives_its_own_auxiliary_loss(model_type: str, fields: dict[str, Any]) -> None:
    model = tiny(model_type, **fields)
    router, head = find_router(model), find_head(model)
    assert router is not None
    assert head is not None
    input_ids = torch.randint(67, (2, 9), generator=torch.Generator().manual_seed(0))
    outputs = head.backbone(input_ids=input_ids, use_cache=False, output_router_logits=True)
    actual = router_aux_loss(outputs.router_logits, router, count=1)
    expected = model(input_ids=input_ids, use_cache=False, output_router_logits=True).aux_loss
    torch.testing.assert_close(actual, expected)
    actual.backward()
    gate = next(parameter for name, parameter in model.named_parameters() if "gate.weight" in name)
    assert gate.grad is not None
    assert gate.grad.any()


def test_dense_models_and_other_ways_to_balance_have_no_router() -> None:
    assert find_router(tiny("llama")) is None
    assert find_router(tiny("deepseek_v3", n_routed_experts=4, n_group=1, topk_group=1)) is None
