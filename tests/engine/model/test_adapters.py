"""What is wrong with an adapter is said before any weight loads, with what there is instead."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from sftctl.engine.model import adapters
from sftctl.engine.model.adapters import Adapter, add_adapter, base_digest, check_adapter
from sftctl.engine.model.head import find_head, head_self_test
from sftctl.engine.model.loading import load_model, meta_model
from sftctl.errors import ModelError
from tests.engine.model.tiny import TINY

LLAMA = {"name_or_path": None, "init": "random", "architecture": TINY, "vocab_size": 40}
MIXTRAL = LLAMA | {"architecture": TINY | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}}
LINEARS = "down_proj, embed_tokens, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"


def refused(settings: dict[str, Any] = LLAMA, *, resized: bool = False, **changes: Any) -> list[str]:
    with pytest.raises(ModelError) as error:
        check_adapter(meta_model(**settings), Adapter(**changes), resized=resized)
    return str(error.value).splitlines()


def test_a_target_that_matches_nothing_is_refused_beside_one_that_does() -> None:
    """peft would adapt q_proj and say nothing of the other."""
    assert refused(target_modules=("q_proj", "query")) == [
        f"peft.lora_target_modules[1]: this LlamaForCausalLM has no module 'query'; there are {LINEARS}"
    ]


def test_a_target_that_is_no_single_layer_is_refused() -> None:
    assert refused(target_modules=("self_attn",)) == [
        "peft.lora_target_modules[0]: 'self_attn' is a LlamaAttention, and an adapter goes into single layers; "
        f"there are {LINEARS}"
    ]


def test_parameters_and_modules_to_save_are_held_to_what_there_is() -> None:
    assert refused(MIXTRAL, target_parameters=("experts.up_proj",), modules_to_save=("head",)) == [
        "peft.lora_target_parameters[0]: this MixtralForCausalLM has no parameter 'experts.up_proj'; "
        "there are experts.down_proj, experts.gate_up_proj, gate.weight",
        "peft.lora_modules_to_save[0]: this MixtralForCausalLM has no module 'head'; there are embed_tokens, experts, "
        "gate, input_layernorm, k_proj, lm_head, norm, o_proj, post_attention_layernorm, q_proj, v_proj",
    ]
    assert refused(target_parameters=("norm.weight",)) == [
        "peft.lora_target_parameters[0]: 'norm.weight' has 1 dimension(s), and an adapter is made for 2 or 3; "
        "all matrices of this model are modules: lora_target_modules"
    ]


def test_new_rows_need_an_embedding_that_trains() -> None:
    assert refused(resized=True) == [
        "model.architecture.vocab_size: new rows of model.embed_tokens would stay as they are: the adapter does not "
        'train them; set peft.lora_modules_to_save = ["embed_tokens"], with the output layer if it is not tied to it'
    ]
    check_adapter(meta_model(**LLAMA), Adapter(modules_to_save=("embed_tokens", "lm_head")), resized=True)


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        adapters.importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else find_spec(name, *rest)
    )
    assert refused() == ["peft.use_peft: adapters need peft, which is not installed; pip install 'sftctl[peft]'"]


def test_weights_follow_from_the_seed_alone_and_the_base_is_frozen() -> None:
    made = []
    for seed, noise in ((1, 0), (1, 9), (2, 0)):
        torch.manual_seed(noise)
        model = load_model(**LLAMA, seed=0)
        state = torch.random.get_rng_state()
        add_adapter(model, Adapter(r=2), seed=seed)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert model.training
        made.append({name: p.detach() for name, p in model.named_parameters() if p.requires_grad})
    assert all("lora_" in name for name in made[0])
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert not all(torch.equal(made[0][name], made[2][name]) for name in made[0])


def test_the_output_layer_stays_fused_unless_the_adapter_goes_into_it() -> None:
    for changes, fused in (
        ({}, True),
        ({"modules_to_save": ("lm_head",)}, True),
        ({"target_modules": ("lm_head",)}, False),
    ):
        model = load_model(**LLAMA, seed=0)
        add_adapter(model, Adapter(**changes))
        head = find_head(model)
        assert head_self_test(model, head).fused is fused, changes
        assert head is None or head.weight.requires_grad is ("modules_to_save" in changes)


def test_the_digest_of_a_base_tells_it_from_another_and_not_from_its_half_precision() -> None:
    def digest(seed: int = 0, dtype: str = "float32", **changes: Any) -> str:
        model = load_model(**LLAMA, seed=seed, dtype=dtype)
        add_adapter(model, Adapter(**changes), seed=7)
        return base_digest(model)

    assert digest() == digest(dtype="bfloat16") == digest(r=3)
    assert len({digest(), digest(seed=1)}) == 2


def test_on_the_meta_device_the_shapes_are_the_real_ones() -> None:
    real, meta = load_model(**LLAMA), meta_model(**LLAMA)
    for model in (real, meta):
        add_adapter(model, Adapter(use_dora=True, modules_to_save=("lm_head",)), on_meta=model is meta)
    shapes = [
        {name: (p.shape, p.dtype, p.requires_grad) for name, p in model.named_parameters()} for model in (real, meta)
    ]
    assert shapes[0] == shapes[1]
    assert all(parameter.is_meta for parameter in meta.parameters())
