"""What of a training run has to survive, under names: weights, buffers, the optimiser's tensors.

An optimiser numbers its parameters; numbers change with the grouping of parameters and with the ranks. So each
of its tensors is called after its parameter: `optimizer.model.norm.weight.exp_avg`. A fresh optimiser has no
tensors yet, so the ones to load into are made from what the checkpoint says it holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sftctl.engine.saving.storage import Index, dtype_of
from sftctl.errors import Problem, RunError

WEIGHTS = "weights."
BUFFERS = "buffers."
OPTIMIZER = "optimizer."


@dataclass(frozen=True, slots=True)
class TrainingState:
    """`weights` are what the optimiser changes, by name (the adapter's alone where an adapter is trained)."""

    weights: Mapping[str, Tensor]
    optimizer: torch.optim.Optimizer
    buffers: Mapping[str, Tensor] = field(default_factory=dict)


def tensors_of(state: TrainingState) -> dict[str, Tensor]:
    """Every tensor to save, by name."""
    tensors = {f"{WEIGHTS}{name}": tensor for name, tensor in state.weights.items()}
    tensors |= {f"{BUFFERS}{name}": tensor for name, tensor in state.buffers.items()}
    for name, parameter in _optimised(state).items():
        for key, value in state.optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{OPTIMIZER}{name}.{key}"] = value
    return {name: tensor.detach() for name, tensor in tensors.items()}


def scalars_of(state: TrainingState) -> dict[str, dict[str, Any]]:
    """What an optimiser keeps beside tensors: {parameter: {key: number}}."""
    return {
        name: scalars
        for name, parameter in _optimised(state).items()
        if (scalars := {k: v for k, v in state.optimizer.state.get(parameter, {}).items() if not isinstance(v, Tensor)})
    }


def _optimised(state: TrainingState) -> dict[str, Tensor]:
    """The optimiser's parameters by name, in its own order."""
    names = {id(tensor): name for name, tensor in state.weights.items()}
    return {names[id(parameter)]: parameter for group in state.optimizer.param_groups for parameter in group["params"]}


def targets_for(state: TrainingState, index: Index, *, where: str) -> dict[str, Tensor]:
    """Tensors to load into, by name: the state's own, and new ones for the optimiser.

    Raises RunError where names, shapes or dtypes are not those of the checkpoint.
    """
    targets = weight_targets(state.weights, index, where=where, buffers=state.buffers)
    parameters = _optimised(state)
    for full, entry in index.items():
        if full.startswith(OPTIMIZER):
            name, _ = _parameter_and_key(full)
            targets[full] = _like(parameters[name], tuple(entry["size"]), dtype_of(entry))
    return targets


def weight_targets(
    weights: Mapping[str, Tensor], index: Index, *, where: str, buffers: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The part of `targets_for` that is the model's: what the weights alone are loaded into. Raises RunError."""
    targets = {f"{WEIGHTS}{name}": tensor.detach() for name, tensor in weights.items()}
    targets |= {f"{BUFFERS}{name}": tensor.detach() for name, tensor in (buffers or {}).items()}
    stored = {name for name in index if not name.startswith(OPTIMIZER)}
    _refuse_other_names(stored, set(targets), where=where)
    for name, target in targets.items():
        size, dtype = tuple(index[name]["size"]), dtype_of(index[name])
        if (size, dtype) != (tuple(target.shape), target.dtype):
            now = f"{tuple(target.shape)} {target.dtype}"
            raise _other_model(f"{name} is {now} here and {size} {dtype} in {where}")
    return targets


def _parameter_and_key(full: str) -> tuple[str, str]:
    """ "optimizer.model.norm.weight.exp_avg" -> ("model.norm.weight", "exp_avg")."""
    name, _, key = full.removeprefix(OPTIMIZER).rpartition(".")
    return name, key


def _like(parameter: Tensor, size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An optimiser's tensor: spread over ranks as its parameter is where it has its shape, else whole."""
    if size == tuple(parameter.shape):
        return torch.empty_like(parameter, dtype=dtype, requires_grad=False)
    return torch.empty(size, dtype=dtype, device=parameter.device)


def _refuse_other_names(stored: set[str], wanted: set[str], *, where: str) -> None:
    for names, text in ((wanted - stored, f"are not in {where}"), (stored - wanted, f"are in {where} and not here")):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise _other_model(f"{len(names)} tensors {text}: {shown}")


def _other_model(message: str) -> RunError:
    return RunError(
        Problem(
            "checkpoint.resume",
            f"the checkpoint is of another model: {message}",
            help="give the model that the run was started with, or start another run",
        )
    )


def load_optimizer(
    state: TrainingState, tensors: Mapping[str, Tensor], scalars: Mapping[str, Mapping[str, Any]]
) -> None:
    """Hand loaded tensors and numbers to the optimiser, through its own `load_state_dict`."""
    content = state.optimizer.state_dict()
    entries: dict[str, dict[str, Any]] = {name: dict(numbers) for name, numbers in scalars.items()}
    for full, tensor in tensors.items():
        if full.startswith(OPTIMIZER):
            name, key = _parameter_and_key(full)
            entries.setdefault(name, {})[key] = tensor
    names = enumerate(_optimised(state))
    content["state"] = {number: entries[name] for number, name in names if name in entries}
    state.optimizer.load_state_dict(content)
