"""In which numbers the model computes, and in which its weights are kept.

Under `precision = "bf16"` the model holds bf16 compute copies; the optimiser holds the float32 master weights
and float32 gradients. Against autocast this casts each weight once a step instead of once a use (measured on
two cores, SmolLM2-135M: 1.2 s of a 9 s step), and activations never. Gradients of micro-batches are added up
in float32: each leaves its bf16 form the moment autograd has made it. Under "fp32" master and copy are one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn


def resolve_precision(precision: str, device: torch.device) -> Literal["fp32", "bf16"]:
    """ "auto": bf16 where the device computes in it, else fp32."""
    if precision == "fp32":
        return "fp32"
    if precision == "bf16":
        return "bf16"
    return "bf16" if computes_in_bf16(device) else "fp32"


def computes_in_bf16(device: torch.device) -> bool:
    """Whether bf16 products run on the device's own units, not by way of float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        capability = torch.backends.cpu.get_cpu_capability()
        return capability.startswith("AVX512") and bool(torch.cpu._is_avx512_bf16_supported())
    return False


class Weights:
    """The trainable parameters twice over: what the model computes with, what the optimiser changes.

    `named` pairs each parameter's name with its master. With compute dtype equal to the master's the two are
    the same tensors, and `publish` does nothing.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], *, compute_dtype: torch.dtype | None) -> None:
        self._pairs: list[tuple[nn.Parameter, Tensor]] = []
        self.named: dict[str, Tensor] = {}
        self._master_of: dict[int, Tensor] = {}
        for name, parameter in parameters:
            if not parameter.requires_grad:
                if compute_dtype is not None and parameter.dtype == torch.float32:
                    parameter.data = parameter.data.to(compute_dtype)
                continue
            master: Tensor = parameter
            if compute_dtype is not None and parameter.dtype == torch.float32 != compute_dtype:
                master = parameter.data
                parameter.data = master.to(compute_dtype)
                parameter.register_post_accumulate_grad_hook(self._take_gradient)  # type: ignore[no-untyped-call]
                self._pairs.append((parameter, master))
            self.named[name] = master
            self._master_of[id(parameter)] = master

    @property
    def masters(self) -> list[Tensor]:
        return list(self.named.values())

    def _take_gradient(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        if gradient is None:  # the fused head's: it went into the buffer of `gradient_of` already
            return
        master = self._master_of[id(parameter)]
        if master.grad is None:
            master.grad = gradient.to(master.dtype)
        else:
            master.grad.add_(gradient)
        parameter.grad = None

    def gradient_of(self, parameter: Tensor) -> Tensor | None:
        """The float32 buffer in which `parameter`'s gradient is added up; None where autograd's own is that."""
        master = self._master_of.get(id(parameter))
        if master is None or master is parameter:
            return None
        if master.grad is None:
            master.grad = torch.zeros_like(master)
        return master.grad

    def zero_gradients(self) -> None:
        for master in self.named.values():
            master.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the copies that the model computes with."""
        if self._pairs:
            torch._foreach_copy_([copy.data for copy, _ in self._pairs], [master for _, master in self._pairs])

    @contextmanager
    def exposed(self) -> Iterator[None]:
        """Inside, the model holds the masters themselves: for saving it."""
        copies = [copy.data for copy, _ in self._pairs]
        for parameter, master in self._pairs:
            parameter.data = master
        try:
            yield
        finally:
            for (parameter, _), copy in zip(self._pairs, copies, strict=True):
                parameter.data = copy
