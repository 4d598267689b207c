"""Activation offloading: what forward saves for backward waits in host memory.

    forward   block 1 saves ──► host      block 2 saves ──► host      ...
    backward  ... block 2 reads  ◄── host (block 1 is fetched meanwhile)   block 1 reads

Saved-tensor hooks around the forward pass copy each large saved tensor to the host and give it back exactly when
backward asks: values, strides, offset. Gradients are bitwise what they are without.

- What travels is the range of bytes of the storage that a tensor covers (all of it from one half on), so
  non-contiguous, broadcast and offset tensors need no special case. A storage saved twice travels once; its host
  copy lives as long as a saved tensor refers to it, and the device copy goes as soon as its transfer is done.
- Parameters, buffers, their views and casts, tensors below `min_offload_bytes`, tensor subclasses, and the fused
  loss (it saves nothing through hooks) stay where they are. So does what a selective checkpoint caches.
- Host memory comes from slabs that every pass fills again from the start: after the first pass of the largest
  size nothing is allocated. On CUDA they are pinned, copies run on two side streams, and tensors come back one
  block (the pass's bytes / the model's blocks) ahead of the backward pass.
- It hides when transfer / compute ≈ F / (12 · h · B) < 1, F achieved FLOP/s, h hidden size, B host link bytes/s.
- Elsewhere the same hooks copy synchronously: nothing is saved on a CPU, but every path is tested there. What is
  particular to CUDA (host_copies.py) has not run on a GPU yet.

Source: saved-tensor hooks, https://docs.pytorch.org/docs/stable/autograd.html#saved-tensors-hooks-doc.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from sftctl.engine.memory.host_copies import CudaTransfer, HostCopy, Slabs, SyncTransfer, Transfer

_MIB = 2**20
MIN_OFFLOAD_BYTES = _MIB


@dataclass(frozen=True, slots=True)
class OffloadStatistics:
    """Sums over the passes since the object was made, but for `host_bytes`, which is what the slabs hold now.

    `stall_seconds` is the time a CUDA device waited for transfers that did not hide; None where not measured.
    """

    passes: int = 0
    tensors: int = 0
    shared_tensors: int = 0
    bytes_to_host: int = 0
    bytes_to_device: int = 0
    host_bytes: int = 0
    stall_seconds: float | None = None


class ActivationOffloading:
    """A context manager around the forward and backward pass of each micro-batch, made once and entered each time.

    `min_offload_bytes`: smaller tensors stay. `num_blocks`: what the pass's bytes are divided by to get the size
    of the prefetch; none: the length of the model's longest list of modules. `max_in_flight_bytes` bounds the
    tensors whose copy to the host has not ended. `measure_stalls` costs a synchronisation a pass.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        min_offload_bytes: int = MIN_OFFLOAD_BYTES,
        num_blocks: int | None = None,
        max_in_flight_bytes: int = 512 * _MIB,
        slab_bytes: int = 64 * _MIB,
        measure_stalls: bool = False,
    ) -> None:
        self._model = model
        self._min_offload_bytes = min_offload_bytes
        self._num_blocks = num_blocks or longest_module_list(model)
        self._device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        cuda = self._device.type == "cuda"
        self._slabs = Slabs(slab_bytes, pinned=cuda)
        self._transfer: Transfer = (
            CudaTransfer(self._device, max_in_flight_bytes=max_in_flight_bytes, measure_stalls=measure_stalls)
            if cuda
            else SyncTransfer(self._device)
        )
        self._counts = dict.fromkeys(("passes", "tensors", "shared_tensors", "bytes_to_host", "bytes_to_device"), 0)
        self._hooks: Any = None
        self._pass: _Pass | None = None
        self._fixed: set[int] = set()

    def __enter__(self) -> ActivationOffloading:
        assert self._hooks is None, "one pass at a time"
        self._fixed = {_storage_id(tensor) for tensor in (*self._model.parameters(), *self._model.buffers())}
        self._pass = _Pass(self._slabs, self._transfer, self._counts, self._num_blocks)
        self._counts["passes"] += 1
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)
        self._hooks.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._hooks is not None
        assert self._pass is not None
        self._hooks.__exit__(kind, error, at)
        self._pass.close()
        self._transfer.finish()
        self._slabs.rewind()
        self._hooks = self._pass = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is saved inside stays on the device: for a loss over full logits, needed again at once."""
        with torch.autograd.graph.saved_tensors_hooks(_same, _same):
            yield

    @property
    def statistics(self) -> OffloadStatistics:
        return OffloadStatistics(
            **self._counts, host_bytes=self._slabs.num_bytes, stall_seconds=self._transfer.stall_seconds
        )

    def _pack(self, tensor: Tensor) -> Tensor | _Saved:
        """A reference to a host copy, or the tensor itself where it stays."""
        assert self._pass is not None
        if type(tensor) is not Tensor or tensor.layout is not torch.strided or tensor.device != self._device:
            return tensor
        if tensor.is_conj() or tensor.is_neg() or tensor.untyped_storage().nbytes() < self._min_offload_bytes:
            return tensor
        if _storage_id(tensor) in self._fixed or _belongs_to_parameter(tensor):
            return tensor
        return self._pass.save(tensor, self._min_offload_bytes) or tensor


def longest_module_list(model: nn.Module) -> int:
    """How many blocks a model has, told by the longest list in it; 1 if it has none."""
    return max((len(module) for module in model.modules() if isinstance(module, nn.ModuleList)), default=1) or 1


def byte_range(tensor: Tensor) -> tuple[int, int]:
    """The bytes [low, high) of its storage that a tensor covers.

    float32, storage of 12: shape (2, 3), stride (6, 1), offset 2 covers elements 2..10, bytes [8, 44).
    """
    span = (
        0
        if tensor.numel() == 0
        else 1 + sum((size - 1) * stride for size, stride in zip(tensor.size(), tensor.stride(), strict=True))
    )
    low = int(tensor.storage_offset()) * tensor.itemsize
    return low, low + span * tensor.itemsize


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _unpack(packed: Tensor | _Saved) -> Tensor:
    return packed.restore() if isinstance(packed, _Saved) else packed


def _storage_id(tensor: Any) -> int:
    """Names a storage as long as something holds it, weakly at least; 0 for what has none of its own."""
    if is_traceable_wrapper_subclass(tensor):
        return 0
    return int(tensor.untyped_storage()._cdata)


def _belongs_to_parameter(tensor: Tensor) -> bool:
    """A parameter's view, where its storage changes under the model (FSDP2), or autocast's copy of it."""
    base = tensor if tensor._base is None else tensor._base
    if isinstance(base, nn.Parameter):
        return True
    cast = base.grad_fn
    if cast is None or cast.name() != "ToCopyBackward0":
        return False
    source = cast.next_functions[0][0]
    return source is not None and isinstance(getattr(source, "variable", None), nn.Parameter)


@dataclass(slots=True)
class _Saved:
    """What autograd holds for an offloaded tensor: where its bytes are, and how it lies in them."""

    owner: _Pass
    copy: HostCopy
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def restore(self) -> Tensor:
        flat = self.owner.bring(self.copy)
        empty = torch.empty(0, dtype=self.dtype, device=flat.device)
        return empty.set_(flat.untyped_storage(), self.offset, self.size, self.stride)


class _Pass:
    """The copies of one forward and backward pass, in the order they were saved."""

    def __init__(self, slabs: Slabs, transfer: Transfer, counts: dict[str, int], num_blocks: int) -> None:
        self._slabs = slabs
        self._transfer = transfer
        self._counts = counts
        self._num_blocks = num_blocks
        self._by_range: weakref.WeakValueDictionary[tuple[int, ...], HostCopy] = weakref.WeakValueDictionary()
        self._order: list[weakref.ref[HostCopy]] = []
        self._ahead: weakref.WeakSet[HostCopy] = weakref.WeakSet()  # prefetched, and not asked for yet
        self._frontier = -1  # index of the next copy to prefetch
        self._num_bytes = 0
        self._open = True

    def save(self, tensor: Tensor, min_offload_bytes: int) -> _Saved | None:
        """None: too small to travel, and no part of something that does."""
        low, high = byte_range(tensor)
        whole = (0, tensor.untyped_storage().nbytes())
        key = (_storage_id(tensor), tensor._version)
        copy = self._by_range.get((*key, *whole)) or self._by_range.get((*key, low, high))
        if copy is not None:
            self._counts["shared_tensors"] += 1
        elif high - low < min_offload_bytes:
            return None
        else:
            span = whole if 2 * (high - low) >= whole[1] else (low, high)
            copy = self._by_range[(*key, *span)] = self._to_host(tensor, *span)
        offset = (low - copy.low) // tensor.itemsize
        return _Saved(self, copy, tensor.dtype, tensor.size(), tensor.stride(), offset)

    def _to_host(self, tensor: Tensor, low: int, high: int) -> HostCopy:
        slab, host = self._slabs.take(high - low)
        copy = HostCopy(tensor, slab, host, low=low, index=len(self._order))
        self._transfer.to_host(copy, _as_bytes(tensor, low, high))
        self._order.append(weakref.ref(copy))
        self._frontier = copy.index
        self._num_bytes += high - low
        self._counts["tensors"] += 1
        self._counts["bytes_to_host"] += high - low
        return copy

    def bring(self, copy: HostCopy) -> Tensor:
        """The bytes on the device, when backward asks; those of the block before start on their way."""
        if copy.device_bytes is None:
            self._fetch(copy)
        self._ahead.discard(copy)
        self._transfer.wait(copy)
        assert copy.device_bytes is not None
        flat = copy.device_bytes
        if self._open:
            self._frontier = min(self._frontier, copy.index - 1)
            self._prefetch()
        else:
            copy.device_bytes = None  # a graph used after its pass: nothing of ours stays on the device
        return flat

    def _prefetch(self) -> None:
        window = self._num_bytes // self._num_blocks
        while self._frontier >= 0 and sum(copy.host.numel() for copy in self._ahead) < window:
            copy = self._order[self._frontier]()
            self._frontier -= 1
            if copy is not None and copy.device_bytes is None:
                self._fetch(copy)
                self._ahead.add(copy)

    def _fetch(self, copy: HostCopy) -> None:
        self._transfer.to_device(copy)
        self._counts["bytes_to_device"] += copy.host.numel()

    def close(self) -> None:
        """Lets go of all device memory. A graph that outlives the pass can still fetch from its host copies."""
        self._open = False
        for reference in self._order:
            copy = reference()
            if copy is not None:
                copy.device_bytes = None
        self._order.clear()


def _as_bytes(tensor: Tensor, low: int, high: int) -> Tensor:
    """Bytes [low, high) of a tensor's storage, as a tensor that shares it."""
    empty = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return empty.set_(tensor.untyped_storage(), low, (high - low,), (1,))
