"""Gradient checkpointing: which activations the forward pass keeps, and which the backward pass makes again.

    False         all are kept
    True          the input of each decoder block; the block runs again in backward
    "selective"   matrix products and attention are kept too, only the cheap rest runs again

Transformers' own per-block checkpointing, non-reentrant, so that keyword arguments pass and hooks see each tensor.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

Mode = Literal[True, False, "selective"]

KEPT = frozenset(
    {
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten.bmm.default,
        torch.ops.aten.baddbmm.default,
        torch.ops.aten.linear.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_cudnn_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    }
)
"""What "selective" keeps: matrix products and attention."""


def set_gradient_checkpointing(model: Any, mode: Mode) -> None:
    """Turn it on on a loaded model, which comes without; nothing else of it changes."""
    if mode is False:
        return
    keywords: dict[str, Any] = {"use_reentrant": False}
    if mode == "selective":
        keywords["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    # Renamed in Transformers 5.2x; the old name warns there, the new one is not in 5.10.
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=keywords)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=keywords)


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
