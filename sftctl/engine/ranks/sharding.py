"""Weights over ranks by torch's FSDP2 (`fully_shard`): one mechanism for sharded, replicated and hybrid.

    strategy  mesh (replicas, shards) of W ranks
    fsdp      (W) or, with hsdp_replicas = R, (R, W / R)
    ddp       (W, 1): every rank has all weights, gradients are all-reduced, block by block behind the backward

The decoder blocks are groups of their own, gathered when they run. All else is the root's group: embedding, last
norm, head, so tied weights are in one group. The loss is computed inside the root's forward, because there its
weights are whole, and the fused loss makes the head's gradient there.

Weights that bitsandbytes has quantised stay whole on every rank: a part of one has lost what it is unpacked by.

Gradients are summed over ranks and never averaged: the loss is divided by the tokens of the whole global batch
already. Sums are float32 whatever the compute dtype; micro-batches add up in float32 too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from sftctl.engine.model.quantization import is_quantized
from sftctl.engine.ranks.distributed import Ranks
from sftctl.engine.training.losses import LossSums
from sftctl.errors import ConfigError, Problem
from sftctl.records import Batch

Strategy = Literal["none", "ddp", "fsdp"]


def resolve_strategy(strategy: str, world_size: int) -> Strategy:
    """ "auto": fsdp on more than one process. One process has nothing to spread, whatever was asked for."""
    if world_size == 1:
        return "none"
    return "ddp" if strategy == "ddp" else "fsdp"


class Root(nn.Module):
    """Model and loss as one module. `loss(batch, scale)` is called where the model's own weights are whole."""

    def __init__(self, model: nn.Module, loss: Callable[[Batch, float], LossSums]) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, batch: Batch, scale: float) -> tuple[Tensor, ...]:
        """FSDP finds in these tensors where backward will begin; a record would hide them."""
        sums = self._loss(batch, scale)
        figures = (sums.loss, sums.num_correct, sums.entropy)
        return figures if sums.router_aux is None else (*figures, sums.router_aux)


class Sharded:
    """A model whose weights are spread over ranks. Made before the optimiser, which then sees each rank's part."""

    def __init__(
        self,
        model: Any,
        loss: Callable[[Batch, float], LossSums],
        *,
        ranks: Ranks,
        strategy: Literal["ddp", "fsdp"],
        hsdp_replicas: int,
        reshard_after_forward: bool,
        cpu_offload: bool,
        compute_dtype: torch.dtype | None,
    ) -> None:
        self.model = model
        self.root = Root(model, loss)
        replicated = strategy == "ddp"
        settings: dict[str, Any] = {
            "mesh": _mesh(ranks, ranks.world_size if replicated else hsdp_replicas),
            "mp_policy": MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32),
            "offload_policy": CPUOffloadPolicy() if cpu_offload and ranks.device.type == "cuda" else OffloadPolicy(),
            "ignored_params": {parameter for parameter in model.parameters() if is_quantized(parameter)},
        }
        self._groups: list[FSDPModule] = []
        for block in blocks_of(model):
            self._groups.append(
                fully_shard(block, reshard_after_forward=reshard_after_forward and not replicated, **settings)
            )
        self._groups.append(fully_shard(self.root, reshard_after_forward=False, **settings))
        for group in self._groups:
            group.set_gradient_divide_factor(1.0)
            group.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sums

    def forward(self, batch: Batch, scale: float) -> LossSums:
        loss, num_correct, entropy, *router_aux = self.root(batch, scale)
        return LossSums(loss, num_correct, entropy, batch.num_supervised, *router_aux)

    def before_batch(self, last: bool) -> None:
        """Before a micro-batch: replicas exchange gradients once a step, after the last one."""
        self._groups[-1].set_requires_all_reduce(last)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside, the root's weights are whole, for calls of the model itself: generating."""
        self._groups[-1].unshard()
        try:
            yield
        finally:
            self._groups[-1].reshard()

    def state_dict(self, *, is_main: bool) -> Mapping[str, Tensor] | None:
        """All weights whole in host memory, on the main rank; None on others. Collective, a tensor at a time."""
        for group in self._groups:
            group.reshard()  # an evaluation leaves gathered weights behind
        whole: dict[int, Tensor] = {}
        state: dict[str, Tensor] = {}
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        for name, tensor in self.model.state_dict().items():
            source = parameters.get(name, tensor)
            if id(source) not in whole:
                gathered = source.full_tensor() if isinstance(source, DTensor) else source
                whole[id(source)] = gathered.detach().cpu() if is_main else torch.empty(0)
            state[name] = whole[id(source)]
        return state if is_main else None


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The decoder blocks: the elements of the list of modules that holds most of the parameters."""

    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    sizes = [sum(parameter.numel() for parameter in modules.parameters()) for modules in lists]
    return list(lists[sizes.index(max(sizes))]) if lists else []


def _mesh(ranks: Ranks, replicas: int) -> DeviceMesh:
    kind, world_size = ranks.device.type, ranks.world_size
    if world_size % replicas:
        message = f"{replicas} replicas do not divide {world_size} processes"
        raise ConfigError(Problem("distributed.hsdp_replicas", message, help="use a divisor"))
    if replicas == 1:
        return init_device_mesh(kind, (world_size,), mesh_dim_names=("shards",))
    return init_device_mesh(kind, (replicas, world_size // replicas), mesh_dim_names=("replicas", "shards"))
