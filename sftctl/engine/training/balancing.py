"""The auxiliary loss that keeps the experts of a mixture in use: Transformers' own function, as a sum like the losses.

Shapes: T positions, E experts, B rows of L positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor


class Router(Protocol):
    """How a mixture of experts routes, and Transformers' own function that rates the balance."""

    @property
    def load_balancing_loss(self) -> Callable[..., Tensor]: ...
    @property
    def num_experts(self) -> int: ...
    @property
    def top_k(self) -> int: ...


def router_aux_loss(
    router_logits: tuple[Tensor, ...],
    router: Router,
    *,
    count: int,
    token_mask_BL: Tensor | None = None,
) -> Tensor:
    """The auxiliary loss of a mixture of experts as a sum, times its coefficient an addend of `LossSums.loss`.

    `router_logits` are the backbone's, [T, E] for each layer; `token_mask_BL` is 1 where there is no padding.
    Transformers' function is a mean over the tokens it sees (E · Σ_e f_e · P_e, Switch Transformer, arXiv
    2101.03961, eq. 4), so it is multiplied by `count`, the supervised tokens of the micro-batch: after the
    division by N the micro-batches' values stand in a mean weighted by supervised tokens, and a rank without any
    adds nothing. How the rows of one micro-batch are laid out (padded, flat, packed) changes nothing, since it
    sees the same tokens. f_e · P_e is a product of means, so another cut into micro-batches gives exactly the same
    value only where they route alike; the function allows no more.
    """
    aux = router.load_balancing_loss(router_logits, router.num_experts, router.top_k, token_mask_BL)
    return aux * count
