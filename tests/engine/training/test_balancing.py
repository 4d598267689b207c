"""The balancing loss of a mixture of experts, against Transformers' own function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sftctl.engine.training.balancing import router_aux_loss


@dataclass
class PlainRouter:
    load_balancing_loss: Callable[..., Tensor]
    num_experts: int = 4
    top_k: int = 2


def test_router_loss_is_a_sum_in_supervised_tokens() -> None:
    """Two micro-batches that route alike give, over N, the value of the whole; the mask reaches the function."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func  # heavy: only here

    router = PlainRouter(load_balancing_loss_func)
    logits = (torch.randn(6, 4), torch.randn(6, 4))
    doubled = tuple(torch.cat([layer, layer]) for layer in logits)
    part = router_aux_loss(logits, router, count=5)
    whole = router_aux_loss(doubled, router, count=10)
    torch.testing.assert_close(part + part, whole)
    torch.testing.assert_close(whole / 10, load_balancing_loss_func(logits, 4, 2))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]])
    masked = router_aux_loss(doubled, router, count=5, token_mask_BL=mask)
    torch.testing.assert_close(masked, part)
