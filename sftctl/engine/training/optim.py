"""Optimisers, learning-rate schedules, weight-decay groups and the gradient norm.

A schedule is a function from (step, total, warm-up) to a factor of the peak learning rate, with Transformers'
formulas (`transformers.optimization`), so that curves compare. No scheduler object: the learning rate of a step
follows from its number alone, and a resumed run needs no scheduler state.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sftctl.engine.ranks.whole import WholeTensors
from sftctl.engine.training.muon import Muon
from sftctl.errors import ModelError, Problem

Schedule = Callable[[int, int, int], float]
"""(step from 0, total steps, warm-up steps) -> factor in [0, 1], after warm-up."""

WSD_DECAY_SHARE = 0.2
"""The share of a run that `warmup_stable_decay` spends decaying (10-20 % in arXiv 2405.18392)."""


def _progress(step: int, total: int, warmup: int) -> float:
    return min(1.0, (step - warmup) / max(1, total - warmup))


def _linear(step: int, total: int, warmup: int) -> float:
    return 1.0 - _progress(step, total, warmup)


def _cosine(step: int, total: int, warmup: int) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * _progress(step, total, warmup)))


def _constant(step: int, total: int, warmup: int) -> float:
    return 1.0


def _inverse_sqrt(step: int, total: int, warmup: int) -> float:
    timescale = warmup or 10_000
    return 1.0 / math.sqrt((step - warmup + timescale) / timescale)


def _warmup_stable_decay(step: int, total: int, warmup: int) -> float:
    decay = max(1, round(WSD_DECAY_SHARE * total))
    return min(1.0, max(0.0, (total - step) / decay))


SCHEDULES: dict[str, Schedule] = {
    "linear": _linear,
    "cosine": _cosine,
    "constant": _constant,
    "constant_with_warmup": _constant,
    # Transformers' default power is 1, which makes it linear down to min_lr_ratio.
    "polynomial": _linear,
    "inverse_sqrt": _inverse_sqrt,
    "warmup_stable_decay": _warmup_stable_decay,
}


def learning_rate_at(
    step: int,
    *,
    total_steps: int,
    learning_rate: float,
    lr_scheduler_type: str,
    warmup_steps: float,
    min_lr_ratio: float,
) -> float:
    """The learning rate of step `step` (from 0). `warmup_steps` below 1 is a share of `total_steps`.

    During warm-up step s has s / warm-up of the peak, as in Transformers; a plain "constant" has no warm-up.
    With warm-up 2 of 4 steps and "linear": 0, 1/2, 1, 1/2 of the peak.
    """
    warmup = math.ceil(warmup_steps * total_steps) if 0 < warmup_steps < 1 else int(warmup_steps)
    if lr_scheduler_type == "constant":
        warmup = 0
    if step < warmup:
        return learning_rate * step / warmup
    factor = SCHEDULES[lr_scheduler_type](step, total_steps, warmup)
    return learning_rate * (min_lr_ratio + (1.0 - min_lr_ratio) * factor)


def decay_groups(parameters: Iterable[tuple[str, Tensor]], *, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms and other vectors do not."""
    matrices: list[Tensor] = []
    vectors: list[Tensor] = []
    for _, parameter in parameters:
        (matrices if parameter.ndim >= 2 else vectors).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class Optimizers(torch.optim.Optimizer):
    """Several optimisers over disjoint parameters behind one interface: Muon for matrices, AdamW for the rest."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = tuple(parts)
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        # The groups are the parts' own objects, so that a learning rate set here is set there.
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None
        for part in self.parts:
            part.step()
            self.state.update(part.state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            mine = (parameter for group in part.param_groups for parameter in group["params"])
            part.state.update({parameter: self.state[parameter] for parameter in mine if parameter in self.state})


def _adamw(
    parameters: Sequence[tuple[str, Tensor]],
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    epsilon: float,
) -> torch.optim.Optimizer:
    groups = decay_groups(parameters, weight_decay=weight_decay)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=epsilon, fused=True)


def _adamw_8bit(
    parameters: Sequence[tuple[str, Tensor]],
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    epsilon: float,
) -> torch.optim.Optimizer:
    """AdamW with moments in 8 bits, by blocks (arXiv 2110.02861); tensors under 4,096 elements keep 32."""
    from bitsandbytes.optim import AdamW8bit  # optional, and seconds to import

    return _of_whole_tensors(
        parameters, partial(AdamW8bit, lr=learning_rate, betas=betas, eps=epsilon), weight_decay=weight_decay
    )


def _sgd(
    parameters: Sequence[tuple[str, Tensor]], *, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    return torch.optim.SGD(decay_groups(parameters, weight_decay=weight_decay), lr=learning_rate, foreach=True)


def _adafactor(
    parameters: Sequence[tuple[str, Tensor]], *, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    return _of_whole_tensors(parameters, partial(torch.optim.Adafactor, lr=learning_rate), weight_decay=weight_decay)


def _of_whole_tensors(
    parameters: Sequence[tuple[str, Tensor]], make: Callable[..., torch.optim.Optimizer], *, weight_decay: float
) -> torch.optim.Optimizer:
    """`make(groups)`, or its like over ranks, where each has a part of every weight."""
    groups = decay_groups(parameters, weight_decay=weight_decay)
    spread = any(isinstance(parameter, DTensor) for _, parameter in parameters)
    return WholeTensors(groups, make) if spread else make(groups)


WHOLE_STATES = frozenset({"adafactor", "adamw_8bit"})
"""Optimisers whose states every rank holds whole."""


def _muon(
    parameters: Sequence[tuple[str, Tensor]],
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    epsilon: float,
    precision: str = "fp32",
) -> torch.optim.Optimizer:
    """Muon for hidden matrices, AdamW for embeddings, head and vectors (as its paper has it, arXiv 2502.16982).

    Muon's update has AdamW's usual size, so that one learning rate serves both. `precision` is the run's.
    """
    hidden = [(name, parameter) for name, parameter in parameters if is_hidden_matrix(name, parameter)]
    names = {name for name, _ in hidden}
    rest = [(name, parameter) for name, parameter in parameters if name not in names]
    parts: list[torch.optim.Optimizer] = []
    if hidden:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        parts.append(Muon([matrix for _, matrix in hidden], lr=learning_rate, weight_decay=weight_decay, dtype=dtype))
    if rest:
        parts.append(_adamw(rest, learning_rate=learning_rate, weight_decay=weight_decay, betas=betas, epsilon=epsilon))
    return Optimizers(parts)


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """What Muon is for: a matrix that is neither embedding nor head."""
    return parameter.ndim == 2 and not any(word in name for word in ("embed", "lm_head", "wte", "wpe"))


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw_8bit": _adamw_8bit,
    "adafactor": _adafactor,
    "sgd": _sgd,
    "muon": _muon,
}


def state_bytes(optimizer: str, parameters: Sequence[tuple[str, Tensor]]) -> int:
    """Bytes of an optimiser's states once it has stepped, for float32 masters of these shapes."""
    return sum(_STATE_BYTES[optimizer](name, parameter) for name, parameter in parameters)


def _factored_bytes(name: str, parameter: Tensor) -> int:
    """Adafactor keeps a row and a column of each matrix, and vectors whole."""
    shape = parameter.shape
    if len(shape) < 2:
        return 4 * parameter.numel()
    return 4 * (parameter.numel() // shape[-1] + parameter.numel() // shape[-2])


def _muon_bytes(name: str, parameter: Tensor) -> int:
    return (4 if is_hidden_matrix(name, parameter) else 8) * parameter.numel()


_STATE_BYTES: dict[str, Callable[[str, Tensor], int]] = {
    "adamw": lambda name, parameter: 8 * parameter.numel(),
    "adamw_8bit": lambda name, parameter: (2 if parameter.numel() >= 4096 else 8) * parameter.numel(),
    "adafactor": _factored_bytes,
    "sgd": lambda name, parameter: 0,
    "muon": _muon_bytes,
}


def refuse_without_library(optimizer: str) -> None:
    """Raise ModelError, before anything loads, where an optimiser's library is not installed."""
    if optimizer == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
        message = "adamw_8bit needs bitsandbytes, which is not installed"
        raise ModelError(Problem("optim.optimizer", message, help="pip install 'sftctl[quant]'"))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def gradient_norm(parameters: Sequence[Tensor]) -> Tensor:
    """The 2-norm over all gradients of all ranks, float32, a scalar. 0 where nothing has a gradient."""
    grads = gradients_of(parameters)
    if not grads:
        return torch.zeros(())
    norm = nn.utils.get_total_norm(grads, norm_type=2.0)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def clip_gradients(parameters: Sequence[Tensor], grad_norm: float, max_grad_norm: float) -> None:
    """Scale all gradients by max_grad_norm / (grad_norm + 1e-6), as torch does, where the norm is above the maximum.

    The norm is on the host by then, for the report, so a step that needs no clipping reads and writes no gradient.
    """
    if grad_norm > max_grad_norm:
        torch._foreach_mul_(gradients_of(parameters), max_grad_norm / (grad_norm + 1e-6))


def gradients_of(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def parameters_of(settings: Mapping[str, Any], function: Callable[..., object]) -> dict[str, Any]:
    """Of `settings`, those that are keyword parameters of `function`: a variant's fields are its parameters."""
    code = function.__code__
    names = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    return {name: settings[name] for name in names if name in settings}
