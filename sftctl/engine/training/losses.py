"""The loss seam: hidden states, a head, labels and token weights in; sums of losses and counts out.

Every loss is weighted negative log-likelihood, `L = -Σ_t w_t · c_t · log p_t`, with p_t the model's probability
of target t, w_t the data's weight of the token (1 if none), and c_t the loss's own weight, without gradient. A
row of `LOSSES` is the function log p -> c; one fused linear cross-entropy serves all rows:

- Positions without a target are dropped before the head, so a prompt costs no logits.
- The rest goes through the head in chunks. The gradients of hidden states and head are made in the forward
  pass, from the chunk's logits, which are then overwritten: none are kept and none are computed twice. What
  stays is [S, D] and [V, D], never [T, V]. Recomputing instead would cost a fourth matrix product.
- Logits are in the compute dtype (autocast's, else the hidden states'), softmax and all sums in float32
  (float64 for float64), the head's gradient accumulates in float32.
- Accuracy and entropy come from the same pass. Sums are never divided here: a step divides once, by the
  supervised tokens N of its whole global batch.

The elementwise part works in blocks of rows that stay in the processor's cache; without that it costs more
than a matrix product. 1,100 tokens x 49,152 x 576 in bf16 on one thread: 1.2 to 1.3 times the three matrix
products alone; TRL 1.16's fused head 5.1, whole logits 2.2 at ten times the memory (benchmarks/loss.py).

Sources: the chunked head of Liger Kernel (arXiv 2410.10989) and Cut Cross-Entropy (arXiv 2411.09009) for the
idea that logits need not exist; Dynamic Fine-Tuning, arXiv 2508.05629, for `dft`.

Shapes: T positions, S supervised positions, C rows of a chunk, R rows of a block, V vocabulary, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sftctl.records import IGNORE_INDEX


def nll(log_probs_S: Tensor) -> Tensor:
    """Negative log-likelihood: every token counts the same."""
    return torch.ones_like(log_probs_S)


def dft(log_probs_S: Tensor) -> Tensor:
    """Dynamic Fine-Tuning (arXiv 2508.05629): a token counts by the probability the model gives it now."""
    return log_probs_S.exp()


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {"nll": nll, "dft": dft}
"""loss_type -> log-probabilities of the targets -> weights of the tokens. What a row returns gets no gradient."""


class LinearHead(Protocol):
    """What makes logits of hidden states: `softcap(scale · (hidden_TD @ weight_VDᵀ + bias_V))`."""

    @property
    def weight(self) -> Tensor: ...
    @property
    def bias(self) -> Tensor | None: ...
    @property
    def softcap(self) -> float | None: ...
    @property
    def scale(self) -> float: ...


@dataclass(frozen=True, slots=True)
class LossSums:
    """Sums over the supervised positions of a micro-batch; nothing is divided yet.

    `loss` is a scalar in the graph, float32 (float64 for float64). `num_correct` and `entropy` (nats) are
    detached scalars of the same dtype. A target that shares the largest logit with k - 1 others counts 1/k.
    `router_aux` is what `balancing.router_aux_loss` gives, in the graph and no part of `loss`.
    """

    loss: Tensor
    num_correct: Tensor
    entropy: Tensor
    count: int
    router_aux: Tensor | None = None


@dataclass(frozen=True, slots=True)
class GradSink:
    """A float32 buffer that takes the head weight's gradient instead of autograd.

    For a head in bf16 whose float32 master gradient lives elsewhere (the optimiser's), tied to the embedding or
    not. The forward pass adds `scale · ∂loss/∂weight` to `buffer`, [V, D], in float32, and backward gives the weight
    nothing. The caller promises: `scale` is what the loss sum is multiplied with before backward (1/N), and
    backward runs once. A tied embedding's own gradient still comes by autograd, to be added to the same buffer.
    """

    buffer: Tensor
    scale: float


@dataclass(frozen=True, slots=True)
class _Plan:
    """Everything about a call that is not a tensor of the graph."""

    row_weight: Callable[[Tensor], Tensor]
    softcap: float | None
    scale: float
    dtype: torch.dtype
    chunk_size: int
    block_bytes: int
    needs_hidden: bool
    needs_weight: bool
    needs_bias: bool
    sink: GradSink | None

    def block_rows(self, width: int) -> int:
        """Rows of `width` float32 values that a block holds."""
        return max(1, self.block_bytes // (width * 4))

    @property
    def needs_gradient(self) -> bool:
        return self.needs_hidden or self.needs_weight or self.needs_bias


def linear_cross_entropy(
    hidden_TD: Tensor,
    head: LinearHead,
    labels_T: Tensor,
    weights_T: Tensor | None = None,
    *,
    loss_type: str = "nll",
    chunk_size: int | None = None,
    positions_S: Tensor | None = None,
    grad_sink: GradSink | None = None,
) -> LossSums:
    """The fused linear cross-entropy of this module. Leading dimensions are flattened.

    `labels_T[t]` is the target of position t (shifted already) or IGNORE_INDEX. `positions_S` are the supervised
    positions, int64, ascending, if the caller knows them: finding them here costs a GPU a synchronisation.
    `chunk_size` rows of logits exist at a time; None: as many as fit a budget of bytes. Without gradients
    (no_grad, a frozen head) none are computed. Without a supervised position the loss is 0 and in the graph,
    with gradients of zero.
    """
    hidden_TD = hidden_TD.reshape(-1, hidden_TD.shape[-1])
    labels_T = labels_T.reshape(-1)
    if positions_S is None:
        positions_S = (labels_T != IGNORE_INDEX).nonzero().squeeze(1)
    labels_S = labels_T[positions_S]
    weights_S = None if weights_T is None else weights_T.reshape(-1)[positions_S]
    plan = _make_plan(hidden_TD, head, loss_type, chunk_size, len(positions_S), grad_sink)
    loss, num_correct, entropy = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_TD, head.weight, head.bias, positions_S, labels_S, weights_S, plan
    )
    return LossSums(loss, num_correct, entropy, len(positions_S))


def logits_loss(
    logits_TV: Tensor, labels_T: Tensor, weights_T: Tensor | None = None, *, loss_type: str = "nll"
) -> LossSums:
    """The same sums from a model's full logits, by autograd: for models whose head `find_head` cannot take.

    Supervised positions are copied to float32, so its memory grows with S · V.
    """
    labels_T = labels_T.reshape(-1)
    kept_T = labels_T != IGNORE_INDEX
    labels_S1 = labels_T[kept_T].unsqueeze(1)
    logits_SV = logits_TV.reshape(-1, logits_TV.shape[-1])[kept_T]
    logits_SV = logits_SV.to(torch.promote_types(logits_SV.dtype, torch.float32))
    log_probs_SV = logits_SV.log_softmax(1)
    target_S = log_probs_SV.gather(1, labels_S1).squeeze(1)
    weights_S = LOSSES[loss_type](target_S).detach()
    if weights_T is not None:
        weights_S = weights_S * weights_T.reshape(-1)[kept_T]
    with torch.no_grad():
        entropy = -(log_probs_SV.exp() * log_probs_SV).sum()
        largest_SV = (logits_SV == logits_SV.amax(1, keepdim=True)).to(logits_SV.dtype)
        num_correct = (largest_SV.gather(1, labels_S1).squeeze(1) / largest_SV.sum(1)).sum()
    return LossSums((weights_S * -target_S).sum(), num_correct, entropy, len(labels_S1))


def _make_plan(
    hidden_TD: Tensor, head: LinearHead, loss_type: str, chunk_size: int | None, count: int, sink: GradSink | None
) -> _Plan:
    device = hidden_TD.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_TD.dtype
    grad = torch.is_grad_enabled()
    logit_bytes, block_bytes = _BUDGETS.get(device, _BUDGETS["cuda"])
    num_vocab = head.weight.shape[0]
    return _Plan(
        row_weight=LOSSES[loss_type],
        softcap=head.softcap,
        scale=head.scale,
        dtype=dtype,
        chunk_size=chunk_size or even_chunk_size(count, max_rows=logit_bytes // (num_vocab * dtype.itemsize)),
        block_bytes=block_bytes,
        needs_hidden=grad and hidden_TD.requires_grad,
        needs_weight=grad and head.weight.requires_grad,
        needs_bias=grad and head.bias is not None and head.bias.requires_grad,
        sink=sink,
    )


_MIB = 2**20
_BUDGETS = {"cpu": (64 * _MIB, 4 * _MIB), "cuda": (512 * _MIB, 128 * _MIB)}
"""Bytes of a chunk's logits, and of a block of its rows in float32 (on a CPU: about what its cache holds)."""


def head_bytes(count: int, *, num_vocab: int, num_dims: int, dtype: torch.dtype, device: str) -> int:
    """What the fused loss holds at once for `count` supervised tokens: a chunk's logits, three blocks of rows in
    float32, and the gradient of the hidden states."""
    logit_bytes, block_bytes = _BUDGETS.get(device, _BUDGETS["cuda"])
    rows = even_chunk_size(count, max_rows=logit_bytes // (num_vocab * dtype.itemsize))
    block = min(block_bytes, rows * num_vocab * 4)
    return rows * num_vocab * dtype.itemsize + 3 * block + count * num_dims * dtype.itemsize


def even_chunk_size(count: int, *, max_rows: int) -> int:
    """The rows of a chunk when `count` rows go in as few equal chunks as `max_rows` allows.

    1,100 rows at most 682 a chunk: two of 550, not 682 and 418.
    """
    max_rows = max(1, max_rows)
    num_chunks = max(1, -(-count // max_rows))
    return max(1, -(-count // num_chunks))


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients are made in forward and kept on the context, out of reach of saved-tensor hooks."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        positions_S: Tensor,
        labels_S: Tensor,
        weights_S: Tensor | None,
        plan: _Plan,
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(hidden_TD.device.type, enabled=False):
            work = _Work(plan, hidden_TD, weight_VD, bias_V, len(labels_S))
            for rows in _slices(len(labels_S), plan.chunk_size):
                hidden_CD = hidden_TD[positions_S[rows]].to(plan.dtype)
                work.chunk(rows, hidden_CD, labels_S[rows], None if weights_S is None else weights_S[rows])
        ctx.plan, ctx.positions_S = plan, positions_S
        ctx.hidden_shape, ctx.hidden_dtype, ctx.weight_dtype = hidden_TD.shape, hidden_TD.dtype, weight_VD.dtype
        ctx.grads = (work.grad_hidden_SD, None if plan.sink else work.grad_weight_VD, work.grad_bias_V)
        sums = (work.losses_S.sum(), work.correct_S.sum(), work.entropies_S.sum())
        ctx.mark_non_differentiable(*sums[1:])
        return sums

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Multiplies by a scalar tensor that stays where it is: nothing here waits for a device."""
        if ctx.grads is None:
            raise RuntimeError("backward ran twice through a fused loss; the first needs retain_graph=True")
        _check_promise(ctx.plan.sink, grad_loss)
        grad_hidden_SD, grad_weight_VD, grad_bias_V = ctx.grads
        keep = torch._C._autograd._get_current_graph_task_keep_graph()
        if not keep:
            ctx.grads = None  # the only other reference: AccumulateGrad takes what it need not copy
        grad_hidden_TD = None
        if grad_hidden_SD is not None:
            grad_hidden_TD = grad_hidden_SD.new_zeros(ctx.hidden_shape, dtype=ctx.hidden_dtype)
            grad_hidden_TD.index_copy_(0, ctx.positions_S, (grad_hidden_SD * grad_loss).to(ctx.hidden_dtype))
        if grad_weight_VD is not None:
            grad_weight_VD = grad_weight_VD * grad_loss if keep else grad_weight_VD.mul_(grad_loss)
            grad_weight_VD = grad_weight_VD.to(ctx.weight_dtype)
        if grad_bias_V is not None:
            grad_bias_V = (grad_bias_V * grad_loss).to(ctx.weight_dtype)
        return grad_hidden_TD, grad_weight_VD, grad_bias_V, None, None, None, None


def _check_promise(sink: GradSink | None, grad_loss: Tensor) -> None:
    """Where looking costs nothing: the scale that went into the sink is the one backward came with."""
    if sink is not None and grad_loss.device.type == "cpu":
        assert math.isclose(float(grad_loss), sink.scale, rel_tol=1e-5), (float(grad_loss), sink.scale)


class _Work:
    """The buffers of one call, and what happens to a chunk."""

    def __init__(self, plan: _Plan, hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, count: int) -> None:
        self.plan = plan
        self.weight_VD = weight_VD.detach().to(plan.dtype)
        self.bias_V = None if bias_V is None else bias_V.detach().to(plan.dtype)
        self.sum_dtype = torch.float64 if plan.dtype is torch.float64 else torch.float32
        num_vocab, num_dims = weight_VD.shape
        rows = min(plan.chunk_size, count)
        self.block_size = min(plan.block_rows(num_vocab), max(1, rows))

        def empty(*shape: int, dtype: torch.dtype = self.sum_dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=hidden_TD.device)

        self.logits_CV = empty(rows, num_vocab, dtype=plan.dtype)
        self.block_RV, self.probs_RV, self.scratch_RV = (empty(self.block_size, num_vocab) for _ in range(3))
        self.losses_S, self.correct_S, self.entropies_S = (empty(count) for _ in range(3))
        self.grad_hidden_SD = empty(count, num_dims, dtype=plan.dtype) if plan.needs_hidden else None
        self.grad_weight_VD = None
        if plan.needs_weight:
            sink = plan.sink
            self.grad_weight_VD = sink.buffer if sink else empty(num_vocab, num_dims).zero_()
        self.grad_bias_V = empty(num_vocab).zero_() if plan.needs_bias else None

    def chunk(self, rows: slice, hidden_CD: Tensor, labels_C: Tensor, weights_C: Tensor | None) -> None:
        """Losses, counts and gradients of one chunk; its logits become the gradient of its logits."""
        plan = self.plan
        logits_CV = self.logits_CV[: len(hidden_CD)]
        torch.mm(hidden_CD, self.weight_VD.T, out=logits_CV)
        if self.bias_V is not None:
            logits_CV.add_(self.bias_V)
        log_probs_C = torch.empty_like(self.losses_S[rows])
        for block in _slices(len(hidden_CD), self.block_size):
            stats = self.block(logits_CV[block], labels_C[block].unsqueeze(1))
            log_probs_C[block], self.correct_S[rows][block], self.entropies_S[rows][block] = stats
        row_weights_C = plan.row_weight(log_probs_C)
        if weights_C is not None:
            row_weights_C = row_weights_C * weights_C
        self.losses_S[rows] = -row_weights_C * log_probs_C
        if plan.needs_gradient:
            self.gradients(rows, hidden_CD, logits_CV, (row_weights_C * plan.scale).unsqueeze(1))

    def block(self, logits_RV: Tensor, labels_R1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log p, correctness and entropy of each row; the logits become softmax - onehot, through the soft-cap."""
        plan, num_rows = self.plan, len(logits_RV)
        x_RV, probs_RV, scratch_RV = (b[:num_rows] for b in (self.block_RV, self.probs_RV, self.scratch_RV))
        x_RV.copy_(logits_RV)
        if plan.scale != 1:
            x_RV.mul_(plan.scale)
        if plan.softcap is not None:
            x_RV.div_(plan.softcap).tanh_().mul_(plan.softcap)
        max_R1 = x_RV.amax(1, keepdim=True)
        torch.softmax(x_RV, 1, out=probs_RV)
        lse_R1 = max_R1 - probs_RV.amax(1, keepdim=True).log()  # the largest probability is at least 1 / V
        target_R1 = x_RV.gather(1, labels_R1)
        ties_R1 = torch.eq(x_RV, max_R1, out=scratch_RV).sum(1, keepdim=True)
        correct_R1 = (target_R1 == max_R1) / ties_R1
        entropy_R1 = lse_R1 - torch.mul(probs_RV, x_RV, out=scratch_RV).sum(1, keepdim=True)
        if plan.needs_gradient:
            probs_RV.scatter_add_(1, labels_R1, -torch.ones_like(target_R1))
            if plan.softcap is not None:
                probs_RV.mul_(x_RV.div_(plan.softcap).square_().neg_().add_(1))
            logits_RV.copy_(probs_RV)
        return (target_R1 - lse_R1).squeeze(1), correct_R1.squeeze(1), entropy_R1.squeeze(1)

    def gradients(self, rows: slice, hidden_CD: Tensor, grad_CV: Tensor, row_weights_C1: Tensor) -> None:
        """Row weights multiply the narrow side of each product, in float32: they cost no pass over [C, V]."""
        if self.grad_hidden_SD is not None:
            torch.mul(torch.mm(grad_CV, self.weight_VD), row_weights_C1, out=self.grad_hidden_SD[rows])
        if self.grad_weight_VD is not None:
            weighted_CD = (hidden_CD * row_weights_C1).to(hidden_CD.dtype)
            block_size = self.plan.block_rows(hidden_CD.shape[1])
            scale = self.plan.sink.scale if self.plan.sink else 1.0
            _add_product(self.grad_weight_VD, grad_CV, weighted_CD, scale=scale, block_size=block_size)
        if self.grad_bias_V is not None:
            self.grad_bias_V.add_((row_weights_C1.to(grad_CV.dtype).T @ grad_CV).squeeze(0))


def _add_product(sum_VD: Tensor, grad_CV: Tensor, hidden_CD: Tensor, *, scale: float, block_size: int) -> None:
    """`sum_VD += scale · grad_CVᵀ @ hidden_CD`, summed in sum_VD's dtype, by blocks of V that stay in the cache."""
    if sum_VD.dtype == grad_CV.dtype:
        sum_VD.addmm_(grad_CV.T, hidden_CD, alpha=scale)
        return
    for block in _slices(len(sum_VD), block_size):
        sum_VD[block].add_(_wide_product(grad_CV[:, block].T, hidden_CD, sum_VD.dtype), alpha=scale)


def _wide_product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """On CUDA a product of 16-bit numbers in float32, as it is summed; a CPU rounds it, once a chunk."""
    return torch.mm(left, right, out_dtype=dtype) if left.is_cuda else torch.mm(left, right)


def _slices(count: int, size: int) -> Iterator[slice]:
    """5 rows by 2: [0:2], [2:4], [4:5]."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
