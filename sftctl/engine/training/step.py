"""One optimiser step: micro-batches in, an update and its figures out.

The loss is a sum over supervised tokens, divided once by their number N in the whole global batch (all
micro-batches, all ranks), which is known before the first forward pass. So the gradient does not depend on how
the batch was cut. Nothing here reads the configuration or writes a file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sftctl.engine.model.attention import forward_kwargs
from sftctl.engine.model.head import Head
from sftctl.engine.ranks.distributed import Ranks
from sftctl.engine.training.balancing import Router, router_aux_loss
from sftctl.engine.training.losses import GradSink, LossSums, linear_cross_entropy, logits_loss
from sftctl.engine.training.optim import clip_gradients, gradient_norm, set_learning_rate
from sftctl.engine.training.precision import Weights
from sftctl.errors import Problem, TrainingError
from sftctl.records import IGNORE_INDEX, Batch

Forward = Callable[[Batch, float], LossSums]
"""A micro-batch through model and loss: sums over its supervised tokens, the loss connected to the graph.

The float is what the loss will be multiplied with before backward, 1 / N.
"""


@dataclass(frozen=True, slots=True)
class StepTotals:
    """Figures of one step, over the whole global batch."""

    loss: float
    grad_norm: float
    mean_token_accuracy: float
    entropy: float
    num_tokens: int
    num_supervised: int
    router_aux_loss: float | None = None


def forward_loss(
    batch: Batch,
    scale: float,
    *,
    model: Any,
    head: Head | None,
    weights: Weights | None,
    loss_type: str,
    device: torch.device,
    chunk_size: int | None = None,
    router: Router | None = None,
) -> LossSums:
    """One micro-batch to sums of losses: by backbone and fused head, or by the model's full logits without one.

    Without `weights` the head's gradient is autograd's, as every other. `router`: a mixture of experts is balanced,
    where it trains.
    """
    inputs = forward_kwargs(batch, device=device, model=model)
    balances = router is not None and torch.is_grad_enabled()
    if balances:
        inputs["output_router_logits"] = True
    labels_T = torch.from_numpy(batch.labels.reshape(-1)).to(device)
    weights_T = None if batch.weights is None else torch.from_numpy(batch.weights.reshape(-1)).to(device)
    outputs = (model if head is None else head.backbone)(**inputs)
    router_aux = _router_aux(outputs.router_logits, router, batch, device) if balances and router is not None else None
    if head is None:
        sums = logits_loss(outputs.logits, labels_T, weights_T, loss_type=loss_type)
        return replace(sums, router_aux=router_aux)
    # Found on the host, where it costs no synchronisation.
    positions_S = torch.from_numpy(np.flatnonzero(batch.labels != IGNORE_INDEX)).to(device)
    buffer_VD = weights.gradient_of(head.weight) if weights is not None and torch.is_grad_enabled() else None
    sums = linear_cross_entropy(
        outputs.last_hidden_state,
        head,
        labels_T,
        weights_T,
        loss_type=loss_type,
        chunk_size=chunk_size,
        positions_S=positions_S,
        grad_sink=None if buffer_VD is None else GradSink(buffer_VD, scale),
    )
    return replace(sums, router_aux=router_aux)


def _router_aux(router_logits: tuple[Tensor, ...], router: Router, batch: Batch, device: torch.device) -> Tensor:
    """The auxiliary loss of one micro-batch, without its padding."""
    mask_BL = None
    if batch.row_tokens is not None:
        mask = np.arange(batch.input_ids.shape[1]) < batch.row_tokens[:, None]
        mask_BL = torch.from_numpy(mask.astype(np.int64)).to(device)
    return router_aux_loss(router_logits, router, count=batch.num_supervised, token_mask_BL=mask_BL)


class TrainStep:
    """Holds what a step works on: the forward, the weights, the optimiser, and this process's place."""

    def __init__(
        self,
        forward: Forward,
        weights: Weights,
        optimizer: torch.optim.Optimizer,
        *,
        max_grad_norm: float | None,
        ranks: Ranks,
        activations: Callable[[], AbstractContextManager[Any]] = nullcontext,
        before_batch: Callable[[bool], None] = lambda last: None,
        router_aux_loss_coef: float | None = None,
    ) -> None:
        """`before_batch` is told of each micro-batch whether it is the step's last."""
        self.forward = forward
        self.weights = weights
        self.optimizer = optimizer
        self.max_grad_norm = max_grad_norm
        self.ranks = ranks
        self.activations = activations
        self.before_batch = before_batch
        self.router_aux_loss_coef = router_aux_loss_coef

    def __call__(self, batches: Sequence[Batch], *, learning_rate: float) -> StepTotals:
        num_tokens, num_supervised = self.ranks.total(
            [sum(batch.num_tokens for batch in batches), sum(batch.num_supervised for batch in batches)]
        )
        share = 1.0 / max(1.0, num_supervised)
        self.weights.zero_gradients()
        sums = []
        for number, batch in enumerate(batches, start=1):
            self.before_batch(number == len(batches))
            sums.append(self._accumulate(batch, share))
        grad_norm = float(gradient_norm(self.weights.masters))
        loss, correct, entropy, router_aux = self.ranks.total(torch.stack(sums).sum(0).tolist())
        self._refuse_not_finite(loss, grad_norm, batches)
        if self.max_grad_norm is not None:
            clip_gradients(self.weights.masters, grad_norm, self.max_grad_norm)
        set_learning_rate(self.optimizer, learning_rate)
        self.optimizer.step()
        self.weights.publish()
        return StepTotals(
            loss=loss * share,
            grad_norm=grad_norm,
            mean_token_accuracy=correct * share,
            entropy=entropy * share,
            num_tokens=int(num_tokens),
            num_supervised=int(num_supervised),
            router_aux_loss=None if self.router_aux_loss_coef is None else router_aux * share,
        )

    def _accumulate(self, batch: Batch, share: float) -> Tensor:
        """Add one micro-batch's share of the gradient; its (loss, correct, entropy, router) sums, float64 [4]."""
        with self.activations():
            sums = self.forward(batch, share)
            router_aux = torch.zeros_like(sums.loss) if sums.router_aux is None else sums.router_aux
            ((sums.loss + (self.router_aux_loss_coef or 0.0) * router_aux) * share).backward()  # type: ignore[no-untyped-call]
        figures = (sums.loss, sums.num_correct, sums.entropy, router_aux)
        return torch.stack([figure.detach().double() for figure in figures])

    def _refuse_not_finite(self, loss: float, grad_norm: float, batches: Sequence[Batch]) -> None:
        if math.isfinite(loss) and math.isfinite(grad_norm):
            return
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {grad_norm}"
        mine = [sample for batch in batches for sample in batch.samples]
        rows = sorted({sample for samples in self.ranks.gathered(mine) for sample in samples})
        shown = ", ".join(map(str, rows[:16])) + (", …" if len(rows) > 16 else "")
        raise TrainingError(
            Problem(
                "",
                f"{what}; the weights were not changed by this step (prepared rows {shown})",
                help='lower optim.learning_rate or add optim.warmup_steps; with bf16, try train.precision = "fp32"; '
                "if it comes back at the same step, look at these rows",
            )
        )
