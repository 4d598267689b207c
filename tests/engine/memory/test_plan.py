"""The memory plan: counted activations are those that a real forward keeps, and what is planned is what is made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from sftctl.config.resolve import resolve
from sftctl.engine.memory.plan import Setup, count_activations, plan_memory
from sftctl.engine.model.adapters import Adapter, add_adapter
from sftctl.engine.model.attention import forward_kwargs
from sftctl.engine.model.loading import load_model, meta_model
from sftctl.engine.planning import changes, plan_run, with_settings
from sftctl.engine.training.optim import OPTIMIZERS, parameters_of, state_bytes
from sftctl.errors import ModelError
from sftctl.records import Batch

TINY = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
VOCAB = 300


def settings(**architecture: Any) -> dict[str, Any]:
    return {"name_or_path": None, "init": "random", "architecture": TINY | architecture, "vocab_size": VOCAB}


def setup(**changed: Any) -> Setup:
    return Setup(
        **{
            "batch_size": 2,
            "accumulation": 1,
            "max_length": 256,
            "checkpointing": False,
            "offloading": False,
            "compute_dtype": torch.float32,
            "optimizer": "adamw",
            "device": "cpu",
        }
        | changed
    )


def kept_by_a_real_forward(model: Any, num_tokens: int) -> int:
    """Bytes of the storages that autograd saves, each once, without the model's own."""
    ids = np.zeros((1, num_tokens), dtype=np.int64)
    bounds = np.array([0, num_tokens], dtype=np.int32)
    row = Batch(ids, np.arange(num_tokens)[None], ids, bounds, None, num_tokens, 0, ())
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, tuple[torch.Tensor, int]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = (tensor, storage.nbytes())  # kept, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.base_model(**forward_kwargs(row, model=model))
    return sum(size for _, size in saved.values())


@pytest.mark.parametrize("adapts", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_counted_activations_are_those_of_a_real_forward(adapts: bool, dtype: torch.dtype) -> None:
    """Of a length that was not counted; attention's own differ by what it keeps beside queries, keys and values."""
    models = [meta_model(**settings()), load_model(**settings())]
    if adapts:
        for model in models:
            add_adapter(model, Adapter(r=4), on_meta=model is models[0])
    count = count_activations(models[0], dtype=dtype)
    found = count.at(700)
    assert found.blocks + found.outside == pytest.approx(kept_by_a_real_forward(models[1].to(dtype), 700), rel=0.12)
    assert 0 < found.inputs < found.blocks
    assert adapts or found.inputs < found.products < found.blocks
    assert found.largest == pytest.approx(found.blocks / 3, rel=0.2)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "sgd", "muon"])
def test_planned_optimiser_states_are_those_it_makes(optimizer: str) -> None:
    model = load_model(**settings())
    named = list(model.named_parameters())
    make = OPTIMIZERS[optimizer]
    given = {"learning_rate": 1e-3, "weight_decay": 0.0, "betas": (0.9, 0.999), "epsilon": 1e-8}
    made = make(named, **parameters_of(given, make))
    for _, parameter in named:
        parameter.grad = torch.ones_like(parameter)
    made.step()
    values = [value for state in made.state.values() for value in state.values() if torch.is_tensor(value)]
    held = sum(value.nbytes for value in values if value.ndim)
    assert state_bytes(optimizer, named) == pytest.approx(held, rel=0.01)
    assert state_bytes("adamw_8bit", named) < state_bytes("adamw", named)


def test_each_way_to_save_memory_saves_it() -> None:
    model = meta_model(**settings())
    count = count_activations(model, dtype=torch.bfloat16)

    def total(**changed: Any) -> int:
        return plan_memory(model, count, setup(compute_dtype=torch.bfloat16, max_length=4096, **changed)).total

    none, selective, full = (total(checkpointing=mode) for mode in (False, "selective", True))
    assert none > selective > full
    assert total(checkpointing=False, offloading=True, device="cuda") < total(checkpointing=False, device="cuda")
    assert total(batch_size=1) < none == total(accumulation=2)
    assert total(device="cuda") < total(device="cuda", accumulation=2)
    assert total(optimizer="sgd") < total(optimizer="muon") < none
    assert total(shards=4) < total(shards=2) < none


def test_the_parts_are_what_they_are_called() -> None:
    model = meta_model(**settings())
    numbers = sum(parameter.numel() for parameter in model.parameters())
    count = count_activations(model, dtype=torch.bfloat16)
    parts = plan_memory(model, count, setup(compute_dtype=torch.bfloat16, accumulation=2), resident=7).parts
    assert parts["libraries"] == 7
    assert parts["weights"] == 2 * numbers
    assert parts["master weights"] == parts["gradients"] == 4 * numbers
    assert parts["optimiser"] == 8 * numbers
    exact = plan_memory(model, count_activations(model, dtype=torch.float32), setup()).parts
    assert exact["master weights"] == 0
    add_adapter(model, Adapter(r=2), on_meta=True)
    adapted = plan_memory(model, count, setup(compute_dtype=torch.bfloat16)).parts
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert adapted["optimiser"] == 8 * trained < parts["optimiser"] / 10
    four = plan_memory(model, count, setup(compute_dtype=torch.bfloat16, bits=4)).parts
    assert adapted["weights"] / 4 < four["weights"] < adapted["weights"]


@pytest.mark.parametrize(
    "architecture",
    [
        {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
        {"model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
        {"model_type": "gemma2", "head_dim": 8},
        {"model_type": "olmo2"},
    ],
)
def test_other_families_are_counted_too(architecture: dict[str, Any]) -> None:
    count = count_activations(meta_model(**settings(**architecture)), dtype=torch.float32)
    assert count.at(100).blocks > 100 * 32 * 4 * 3


# ---------------------------------------------------------------------- from a configuration


def bundle(**changed: Any) -> Any:
    base = {
        "model.init": "random",
        "model.tokenizer": "bytes",
        "model.architecture": TINY,
        "train.per_device_train_batch_size": 6,
        "train.gradient_accumulation_steps": 2,
        "train.gradient_checkpointing": False,
        "train.precision": "fp32",
        "sft.max_length": 512,
    }
    return resolve(overrides={**base, **changed}).bundle


def test_changes_come_in_the_order_of_their_cost() -> None:
    found = list(changes(bundle(), device="cuda"))
    assert [settings for settings, same in found if same][:4] == [
        {"train.per_device_train_batch_size": 3, "train.gradient_accumulation_steps": 4},
        {"train.per_device_train_batch_size": 2, "train.gradient_accumulation_steps": 6},
        {"train.per_device_train_batch_size": 1, "train.gradient_accumulation_steps": 12},
        {"train.gradient_checkpointing": "selective"},
    ]
    assert found[len([same for _, same in found if same]) - 1][0]["sft.activation_offloading"] is True
    assert [list(settings)[-1] for settings, same in found if not same] == ["sft.max_length"] * 2
    assert all("sft.activation_offloading" not in settings for settings, _ in changes(bundle(), device="cpu"))


def test_the_first_change_that_fits_is_taken() -> None:
    whole = plan_run(bundle(), device="cuda", memory=10**12)
    assert whole.fits
    assert whole.change is None
    one = with_settings(bundle(), {"train.per_device_train_batch_size": 1, "train.gradient_accumulation_steps": 12})
    smaller = plan_run(one, device="cuda", memory=10**12).plan.total
    tight = plan_run(bundle(), device="cuda", memory=smaller)
    assert tight.change is not None
    assert tight.change.same
    assert tight.change.settings == {"train.per_device_train_batch_size": 1, "train.gradient_accumulation_steps": 12}
    assert tight.change.plan.total == smaller
    assert plan_run(bundle(), device="cuda", memory=1000).change is None


def test_what_cannot_be_counted_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = meta_model(**settings())

    def needs_numbers(*args: Any, **kwargs: Any) -> Iterator[None]:
        raise RuntimeError("Tensor.item() cannot be called on meta tensors")

    monkeypatch.setattr(model.model.layers[0], "forward", needs_numbers)
    with pytest.raises(ModelError, match="the activations of a LlamaForCausalLM cannot be counted: Tensor"):
        count_activations(model, dtype=torch.float32)
    assert model.config._attn_implementation != "sftctl_planned"
