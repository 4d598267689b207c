"""Activation offloading: what forward saves for backward waits in host memory.

Saved-tensor hooks around the forward pass copy each large saved tensor to the host and give it back, exactly, when
backward asks. Gradients are bitwise what they are without. On a machine without CUDA the same hooks copy
synchronously: it saves nothing there, but every path is tested.
"""

from __future__ import annotations

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

    def _pack(self, tensor: Tensor) -> Tensor | tuple[Tensor, torch.Size, tuple[int, ...], int]:
        storage = tensor.untyped_storage()
        if storage.nbytes() < self._min_offload_bytes or storage.data_ptr() in self._excluded:
            return tensor
        flat = tensor.new_empty(0).set_(storage).clone()
        return flat, tensor.size(), tensor.stride(), int(tensor.storage_offset())

    def _unpack(self, packed: Tensor | tuple[Tensor, torch.Size, tuple[int, ...], int]) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        flat, size, stride, offset = packed
        return flat.clone().as_strided(size, stride, offset)
