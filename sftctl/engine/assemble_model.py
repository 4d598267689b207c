"""The half of `assemble` that is about the model: from configuration to a model, with its adapter where one trains.

Bundle -> meta model   checked, without weights
Bundle -> Loaded       the model itself, and what `final/` is saved from
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import attrs
import torch
from torch import nn

from sftctl.config.schema import Bundle
from sftctl.config.table import Table, thaw
from sftctl.engine.model.adapters import Adapter, add_adapter, base_digest, check_adapter
from sftctl.engine.model.architecture import build_config
from sftctl.engine.model.head import find_router
from sftctl.engine.model.hub import is_local
from sftctl.engine.model.loading import load_model, meta_model, quiet_transformers
from sftctl.engine.model.quantization import quantization_config, refuse_without_bitsandbytes
from sftctl.engine.model.sharing import random_rates
from sftctl.engine.training.optim import refuse_without_library


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model, on its device. `saved` has the `save_pretrained` of what it trains: itself, or peft's wrapper.

    `base_digest` tells an adapter's base from another; None where all weights train.
    """

    model: Any
    saved: Any
    base_digest: str | None = None


def model_settings(bundle: Bundle, tokenizer: Any) -> dict[str, Any]:
    """The keyword arguments that `meta_model` and `load_model` share."""
    model = bundle.model
    return {
        "name_or_path": model.name_or_path,
        "init": model.init,
        "revision": model.revision,
        "architecture": thaw(model.architecture),
        "dtype": model.dtype,
        "trust_remote_code": model.trust_remote_code,
        "vocab_size": len(tokenizer),
        "token_ids": {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
    }


def meta_model_of(bundle: Bundle, tokenizer: Any, *, device: torch.device) -> Any:
    """The model that will be trained, on the meta device, with all that can be refused without its weights.

    Raises ModelError. Of an adapter it has the shapes, and of the base `requires_grad` is off.
    """
    bits = bits_of(bundle)
    if bits is not None:
        refuse_without_bitsandbytes(bits=bits, device=device, init=bundle.model.init)
    model = meta_model(**model_settings(bundle, tokenizer))
    if bundle.peft.use_peft:
        adapter = adapter_of(bundle)
        check_adapter(model, adapter, resized=_resizes(bundle))
        add_adapter(model, adapter, on_meta=True)
    return model


def check_model_of(
    bundle: Bundle, tokenizer: Any, *, device: torch.device, is_set: Callable[[str], bool]
) -> Iterator[str]:
    """Refuse what can be refused without weights, and say what of the configuration this model makes of note."""
    refuse_without_library(bundle.optim.optimizer)
    model = meta_model_of(bundle, tokenizer, device=device)
    if bundle.peft.use_peft:
        trained, count = num_trainable(model)
        yield f"the adapter trains {trained:,} of {count:,} parameters ({100 * trained / count:.2f}%)"
    if is_set("sft.router_aux_loss_coef") and bundle.sft.router_aux_loss_coef and find_router(model) is None:
        yield (
            f"sft.router_aux_loss_coef = {bundle.sft.router_aux_loss_coef:g} has no effect: a "
            f"{model.config.model_type} model has no experts that are balanced by a loss"
        )


def load_model_of(
    bundle: Bundle,
    tokenizer: Any,
    *,
    device: torch.device,
    compute_dtype: torch.dtype | None = None,
    whole: bool = True,
) -> Loaded:
    """Load the weights, and put the adapter in. A base that stays frozen loads in the compute dtype at once.

    `whole`: not to be spread over ranks, where weights that are gathered together have one dtype.
    """
    settings = model_settings(bundle, tokenizer)
    peft, bits = bundle.peft, bits_of(bundle)
    if whole and peft.use_peft and not peft.lora_modules_to_save and compute_dtype is torch.bfloat16:
        settings["dtype"] = "bfloat16" if settings["dtype"] == "float32" else settings["dtype"]
    quantised = None
    if bits is not None:
        quantised = quantization_config(
            bits=bits,
            compute_dtype=compute_dtype or torch.float32,
            bnb_4bit_quant_type=peft.bnb_4bit_quant_type,
            use_bnb_nested_quant=peft.use_bnb_nested_quant,
            bnb_4bit_quant_storage=peft.bnb_4bit_quant_storage,
        )
    model = load_model(
        **settings,
        compute_dtype=compute_dtype,
        attn_implementation=bundle.model.attn_implementation,
        model_init_kwargs=thaw(bundle.model.model_init_kwargs),
        seed=bundle.run.seed,
        device=device,
        quantization_config=quantised,
    )
    if not peft.use_peft:
        return Loaded(model, saved=model)
    revision = None if is_local(bundle.model.name_or_path or "") else bundle.model.revision
    saved = add_adapter(model, adapter_of(bundle), revision=revision, seed=bundle.run.seed)
    return Loaded(model, saved=saved, base_digest=base_digest(model))


def adapter_of(bundle: Bundle) -> Adapter:
    peft = bundle.peft
    return Adapter(
        r=peft.lora_r,
        alpha=peft.lora_alpha,
        dropout=peft.lora_dropout,
        target_modules=peft.lora_target_modules,
        target_parameters=peft.lora_target_parameters,
        modules_to_save=peft.lora_modules_to_save,
        use_rslora=peft.use_rslora,
        use_dora=peft.use_dora,
    )


def bits_of(bundle: Bundle) -> Literal[4, 8] | None:
    """Of a base weight, where bitsandbytes quantises it."""
    return 4 if bundle.peft.load_in_4bit else 8 if bundle.peft.load_in_8bit else None


def _resizes(bundle: Bundle) -> bool:
    return bundle.model.init == "pretrained" and "vocab_size" in bundle.model.architecture


def without_dropout(bundle: Bundle, tokenizer: Any) -> tuple[Bundle, dict[str, float]]:
    """The bundle with a model that draws no random numbers in a step, and the rates that were set to 0, by field."""
    settings = model_settings(bundle, tokenizer)
    del settings["dtype"]
    with quiet_transformers():
        config = build_config(**settings)
    text, rates = config.get_text_config(), random_rates(config)
    zeros = dict.fromkeys(rates, 0.0)
    architecture = thaw(bundle.model.architecture)
    if text is config:
        architecture |= zeros
    else:
        architecture["text_config"] = {**architecture.get("text_config", {}), **zeros}
    if rates:
        bundle = attrs.evolve(bundle, model=attrs.evolve(bundle.model, architecture=Table(architecture)))
    if bundle.peft.use_peft and bundle.peft.lora_dropout:
        rates["lora_dropout"] = bundle.peft.lora_dropout
        bundle = attrs.evolve(bundle, peft=attrs.evolve(bundle.peft, lora_dropout=0.0))
    return bundle, rates


def num_trainable(model: nn.Module) -> tuple[int, int]:
    """(parameters that train, all parameters)."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(n for n, trains in counts if trains), sum(n for n, _ in counts)


__all__ = [
    "Loaded",
    "adapter_of",
    "bits_of",
    "check_model_of",
    "load_model_of",
    "meta_model_of",
    "model_settings",
    "num_trainable",
    "without_dropout",
]
