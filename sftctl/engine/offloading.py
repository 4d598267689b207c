"""Activation offloading: what forward saves for backward waits in host memory.

Saved-tensor hooks around the forward pass copy the storage of each large saved tensor to host memory (pinned, where
the tensor is on CUDA) and bring it back when backward asks, with its strides and offset. Gradients are bitwise what
they are without. Copies are synchronous: nothing hides them yet. On a CPU host memory is where tensors are already,
so it saves nothing there and serves to test the hooks. It has not run on CUDA.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor, nn


class ActivationOffloading:
    """A context manager around the forward and backward pass of each micro-batch."""

    def __init__(self, model: nn.Module, *, min_offload_bytes: int = 2**20) -> None:
        self._model = model
        self._min_offload_bytes = min_offload_bytes
        self._excluded: set[int] = set()
        self._hooks: torch.autograd.graph.saved_tensors_hooks | None = None

    def __enter__(self) -> ActivationOffloading:
        tensors = [*self._model.parameters(), *self._model.buffers()]
        self._excluded = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)
        self._hooks.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._hooks is not None
        self._hooks.__exit__(kind, error, at)
        self._hooks = None

    def _pack(self, tensor: Tensor) -> Tensor | _Away:
        storage = tensor.untyped_storage()
        if storage.nbytes() < self._min_offload_bytes or storage.data_ptr() in self._excluded:
            return tensor
        flat = tensor.detach().new_empty(0).set_(storage)
        host = torch.empty_like(flat, device="cpu", pin_memory=flat.is_cuda).copy_(flat)
        return _Away(host, tensor.device, tensor.size(), tensor.stride(), int(tensor.storage_offset()))

    def _unpack(self, packed: Tensor | _Away) -> Tensor:
        return packed.back() if isinstance(packed, _Away) else packed


@dataclass(frozen=True, slots=True)
class _Away:
    """A tensor whose whole storage waits in host memory."""

    host: Tensor
    device: torch.device
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def back(self) -> Tensor:
        return self.host.to(self.device, copy=True).as_strided(self.size, self.stride, self.offset)
