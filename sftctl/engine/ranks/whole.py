"""What works on whole tensors, over weights that are spread over ranks.

An optimiser that looks at rows and columns, or at blocks of 256 numbers, does not give in parts what it gives on the
whole. So one weight after the other is gathered with its gradient, every rank makes the same step of it, and keeps its
part. The states stay whole on every rank, which is little for what is used so: a row and a column of each matrix for
Adafactor, two bytes a weight for AdamW in 8 bits (AdamW's own, spread over n ranks, are 8 / n).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every rank. Collective where it is spread."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(tensor: Tensor, *, like: Tensor) -> Tensor:
    """A whole tensor, the same on every rank, spread as `like` is. Nothing is sent."""
    if not isinstance(like, DTensor):
        return tensor
    mesh = like.device_mesh
    everywhere = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return everywhere.redistribute(placements=like.placements)


class WholeTensors(torch.optim.Optimizer):
    """`make(groups)` makes an optimiser; here it steps on whole tensors, one at a time."""

    def __init__(
        self, groups: list[dict[str, Any]], make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
    ) -> None:
        super().__init__(groups, {})
        self._each: dict[Tensor, tuple[nn.Parameter, torch.optim.Optimizer]] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                stand_in = nn.Parameter(torch.empty(0, dtype=parameter.dtype, device=parameter.device))
                self._each[parameter] = (stand_in, make([{**group, "params": [stand_in]}]))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None
        for parameter, learning_rate in self._with_gradient():
            stand_in, optimizer = self._each[parameter]
            stand_in.data, stand_in.grad = whole(parameter).clone(), whole(parameter.grad)
            optimizer.param_groups[0]["lr"] = learning_rate
            self.state[parameter] = {k: whole(v) if torch.is_tensor(v) else v for k, v in self.state[parameter].items()}
            optimizer.state[stand_in] = self.state[parameter]
            optimizer.step()
            parameter.copy_(part_of(stand_in.data, like=parameter))
            stand_in.grad, stand_in.data = None, stand_in.data.new_empty(0)

    def _with_gradient(self) -> Iterator[tuple[Any, float]]:
        for group in self.param_groups:
            yield from ((parameter, group["lr"]) for parameter in group["params"] if parameter.grad is not None)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Each value as it was kept: torch would make float32 of 8 bits."""
        super().load_state_dict({**state_dict, "state": {}})
        parameters = list(self._each)
        for number, state in state_dict["state"].items():
            self.state[parameters[number]] = dict(state)
