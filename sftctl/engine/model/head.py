"""Where the logits come from: the model's backbone, output embedding, logit scale and soft-cap, found or refused.

The fused loss needs hidden states and a head, not logits. `find_head` reads both from a loaded model, and
`head_self_test` proves on a few tokens that they give the model's own logits. Where they do not, the engine takes
the model's full logits and says so: an architecture is judged by what it computes, not by a list of names.

Shapes: B rows, L positions, T = B * L, V vocabulary, D hidden size.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Head:
    """`softcap(scale · (hidden_TD @ weight_VDᵀ + bias_V))` of the `backbone`'s last hidden states."""

    backbone: nn.Module
    weight: Tensor
    bias: Tensor | None
    softcap: float | None
    scale: float

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """The logits, whole, as the model itself would make them."""
        logits_TV = nn.functional.linear(hidden_TD, self.weight, self.bias) * self.scale
        return logits_TV if self.softcap is None else torch.tanh(logits_TV / self.softcap) * self.softcap


@dataclass(frozen=True, slots=True)
class HeadReport:
    """What the self-test found: the largest difference of a logit, and what was allowed."""

    fused: bool
    reason: str
    max_difference: float = 0.0
    tolerance: float = 0.0


MULTIPLIERS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
"""Fields of a model's config that multiply its logits: Cohere; Falcon-H1; Muse."""

DIVISORS = ("logits_scaling",)
"""Fields that divide them: Granite, MiniCPM3."""

MULTIPLIED_BY_DIVISOR = frozenset({"hyperclovax"})
"""Model types that multiply by what others divide by."""


def find_head(model: nn.Module) -> Head | None:
    """The head of a causal language model, or None where it is not one plain linear layer over a backbone."""
    base = base_model(model)
    output = _plain_linear(base.get_output_embeddings())
    backbone = base.base_model
    if output is None or backbone is base:
        return None
    config = base.config.get_text_config()
    return Head(
        backbone=backbone,
        weight=output.weight,
        bias=output.bias,
        softcap=_field(config, "final_logit_softcapping"),
        scale=_scale(config),
    )


@dataclass(frozen=True, slots=True)
class Router:
    """What Transformers' load-balancing loss of a mixture of experts needs beside the router's logits."""

    load_balancing_loss: Callable[..., Tensor]
    num_experts: int
    top_k: int


def find_router(model: nn.Module) -> Router | None:
    """The router of a mixture that Transformers has a load-balancing loss for, or None.

    Its logits come out of the backbone with `output_router_logits=True`, as `router_logits`. Mixtures that balance
    otherwise (DeepSeek-V3's bias) have no such function beside their model, and none is put upon them.
    """
    base = base_model(model)
    function = getattr(sys.modules[type(base).__module__], "load_balancing_loss_func", None)
    config = base.config.get_text_config()
    num_experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if function is None or not num_experts:
        return None
    return Router(function, num_experts=int(num_experts), top_k=int(config.num_experts_per_tok))


def base_model(model: Any) -> Any:
    """The Transformers model itself, out of peft's wrapper if it has one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _plain_linear(module: Any) -> nn.Linear | None:
    """The linear layer that makes logits, or the one peft trains in its place; none where an adapter changes it."""
    if hasattr(module, "modules_to_save"):
        module = module.modules_to_save[module.active_adapters[0]]
    plain = type(module) is nn.Linear and module.weight.is_floating_point()
    return module if plain else None


def _field(config: Any, name: str) -> float | None:
    value = getattr(config, name, None)
    return None if value is None else float(value)


def _scale(config: Any) -> float:
    scale = 1.0
    for name in MULTIPLIERS:
        scale *= _field(config, name) or 1.0
    for name in DIVISORS:
        value = _field(config, name) or 1.0
        scale = scale * value if config.model_type in MULTIPLIED_BY_DIVISOR else scale / value
    return scale


RELATIVE_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Of the largest logit. Both sides run the same products, so only the order of a scale's rounding may differ."""


@torch.no_grad()
def head_self_test(model: nn.Module, head: Head | None, *, num_tokens: int = 16, seed: int = 0) -> HeadReport:
    """Compares `head.logits` of the backbone with the model's own logits, on random tokens, in evaluation mode."""
    if head is None:
        return HeadReport(False, "the output layer is not one plain linear layer over a backbone")
    base = base_model(model)
    generator = torch.Generator().manual_seed(seed)
    num_ids = base.get_input_embeddings().weight.shape[0]
    input_ids_BL = torch.randint(num_ids, (1, num_tokens), generator=generator).to(head.weight.device)
    with evaluation_mode(base):
        expected_BLV = base(input_ids=input_ids_BL, use_cache=False).logits
        actual_BLV = head.logits(head.backbone(input_ids=input_ids_BL, use_cache=False).last_hidden_state)
    if actual_BLV.shape != expected_BLV.shape:
        return HeadReport(False, f"it has {actual_BLV.shape[-1]} logits a token, the model {expected_BLV.shape[-1]}")
    difference = float((actual_BLV.double() - expected_BLV.double()).abs().max())
    tolerance = RELATIVE_TOLERANCE[actual_BLV.dtype] * float(expected_BLV.abs().max())
    if not difference <= tolerance:  # NaN falls back too
        reason = f"its logits differ from the model's by {difference:.3g}, more than {tolerance:.3g}"
        return HeadReport(False, reason, difference, tolerance)
    return HeadReport(True, "its logits are the model's", difference, tolerance)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off inside; afterwards each module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
