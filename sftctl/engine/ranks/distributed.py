"""The ranks of a run, as torch's own distributed engine has them. One process needs no process group.

torchrun's environment says who we are; gloo serves CPUs, nccl CUDA. Nothing here is home-made communication.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from sftctl.errors import ConfigError, Problem


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place: `rank` of `world_size`, and the device it computes on."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def total(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all ranks, in float64."""
        if self.world_size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        total: list[float] = tensor.tolist()
        return total

    def agree(self, flag: bool) -> bool:
        """Whether any rank says so: the same answer on all."""
        return self.total([float(flag)])[0] > 0

    def from_main(self, value: Any) -> Any:
        """The main rank's value, on every rank. It is pickled."""
        if self.world_size == 1:
            return value
        boxed = [value]
        dist.broadcast_object_list(boxed, src=0, device=self.device)
        return boxed[0]

    def gathered(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank, in their order. They are pickled."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def same(self, tensor: torch.Tensor) -> torch.Tensor:
        """The main rank's tensor, in place, on every rank."""
        if self.world_size > 1:
            dist.broadcast(tensor, src=0)
        return tensor


def default_device(local_rank: int = 0) -> torch.device:
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


def _refuse_too_few_devices(local_rank: int) -> None:
    count = torch.cuda.device_count() if torch.cuda.is_available() else None
    if count is not None and local_rank >= count:
        here = os.environ.get("LOCAL_WORLD_SIZE", str(local_rank + 1))
        message = f"{here} processes on a machine with {count} GPUs: each needs one of its own"
        raise ConfigError(Problem("distributed.nproc_per_node", message, help=f"set it to {count} or less"))


def start() -> Ranks:
    """Join the process group that the launcher announced, or stand alone. Raises ConfigError for too few GPUs."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    _refuse_too_few_devices(local_rank)
    device = default_device(local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size > 1 and not dist.is_initialized():
        # gloo beside nccl: for what lies in host memory, as offloaded weights do.
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return Ranks(rank=int(os.environ.get("RANK", "0")), world_size=world_size, device=device)


def is_first_to_fail() -> bool:
    """Whether no other rank has asked this before: its error is the one to tell of."""
    if not dist.is_initialized():
        return os.environ.get("RANK", "0") == "0"
    store = dist.distributed_c10d._get_default_store()
    return bool(store.add("sftctl/failed", 1) == 1)


def share_cores() -> None:
    """Divide this machine's cores among its ranks, unless the environment says how many threads there are to be."""
    if "OMP_NUM_THREADS" not in os.environ:
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, torch.get_num_threads() // ranks_here))


def seed_everything(seed: int) -> None:
    """Seed all generators that training draws from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def make_deterministic() -> None:
    """Deterministic kernels only; torch raises where it has none. cuBLAS reads its variable when it starts."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
