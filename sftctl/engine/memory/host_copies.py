"""Copies of device memory on the host: where they lie, and how bytes travel.

Slabs hold a pass's copies one after the other; a `Transfer` moves bytes there and back: at once, or on CUDA's side
streams. What is particular to CUDA (`CudaTransfer`) has not run on a GPU yet.

Source: the ordering rules of https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-streams.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

ALIGNMENT = 512


class HostCopy:
    """A range of bytes of one storage, on the host. It holds its slab as long as something holds it.

    `device_bytes` is the range on the device while it is there: the source, whose copy has not ended, or what came
    back. `source` holds the copied storage weakly, so that its id names no other storage meanwhile.
    """

    __slots__ = ("__weakref__", "_slab", "arrival", "device_bytes", "host", "index", "low", "source")

    def __init__(self, source: Tensor, slab: Slab, host: Tensor, *, low: int, index: int) -> None:
        self.source = StorageWeakRef(source.untyped_storage())  # type: ignore[no-untyped-call]
        self.host = host
        self.low = low  # the range's first byte in its storage
        self.index = index
        self.device_bytes: Tensor | None = None
        self.arrival: Any = None  # on CUDA, the event that they are back
        self._slab = slab
        slab.users += 1

    def __del__(self) -> None:
        self._slab.users -= 1


class Slab:
    """A piece of host memory, filled from the start; free again when no copy is in it."""

    __slots__ = ("memory", "used", "users")

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory
        self.used = 0
        self.users = 0


class Slabs:
    """Host memory for the copies of a pass.

    A pass saves all before it frees all, so a pointer that moves forward serves better than a general allocator:
    it never fragments, and never grows once it has seen the largest pass.
    """

    def __init__(self, slab_bytes: int, *, pinned: bool) -> None:
        self._slab_bytes = slab_bytes
        self._pinned = pinned
        self._slabs: list[Slab] = []
        self._current = 0

    @property
    def num_bytes(self) -> int:
        return sum(slab.memory.numel() for slab in self._slabs)

    def take(self, num_bytes: int) -> tuple[Slab, Tensor]:
        while self._current < len(self._slabs):
            slab = self._slabs[self._current]
            if slab.used + num_bytes <= slab.memory.numel():
                break
            self._current += 1
        else:
            slab = self._new_slab(num_bytes)
        start, slab.used = slab.used, -(-(slab.used + num_bytes) // ALIGNMENT) * ALIGNMENT
        return slab, slab.memory[start : start + num_bytes]

    def _new_slab(self, num_bytes: int) -> Slab:
        size = max(self._slab_bytes, 1 << (num_bytes - 1).bit_length())  # pinned memory comes in powers of two anyway
        self._slabs.append(Slab(torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)))
        return self._slabs[-1]

    def rewind(self) -> None:
        """Fill from the start again. A slab that a surviving graph still reads is left to that graph."""
        self._slabs = [slab for slab in self._slabs if slab.users == 0]
        for slab in self._slabs:
            slab.used = 0
        self._current = 0


class Transfer(Protocol):
    """How bytes travel. `to_device` sets `copy.device_bytes`; after `wait` the current stream may read them."""

    stall_seconds: float | None

    def to_host(self, copy: HostCopy, source: Tensor) -> None: ...
    def to_device(self, copy: HostCopy) -> None: ...
    def wait(self, copy: HostCopy) -> None: ...
    def finish(self) -> None: ...


class SyncTransfer:
    """Each copy is done when its call returns."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.stall_seconds: float | None = None

    def to_host(self, copy: HostCopy, source: Tensor) -> None:
        copy.host.copy_(source)

    def to_device(self, copy: HostCopy) -> None:
        copy.device_bytes = torch.empty_like(copy.host, device=self._device).copy_(copy.host)

    def wait(self, copy: HostCopy) -> None:
        pass

    def finish(self) -> None:
        pass


class CudaTransfer:
    """Copies on two side streams. The compute stream waits for one only where it reads, or would overwrite, bytes.

    All device memory is allocated and freed on the compute stream, and each use on a side stream is ordered against
    it by events, so the caching allocator needs no `record_stream`. At most `max_in_flight_bytes` of sources wait
    for their copy to the host; those still there when backward begins are used where they are.
    """

    def __init__(self, device: torch.device, *, max_in_flight_bytes: int, measure_stalls: bool) -> None:
        self._device = device
        self._out = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._back = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._max_in_flight_bytes = max_in_flight_bytes
        self._in_flight: deque[tuple[weakref.ref[HostCopy], Tensor, Any]] = deque()
        self._in_flight_bytes = 0
        self._measure_stalls = measure_stalls
        self._stalls: list[tuple[Any, Any]] = []
        self.stall_seconds: float | None = 0.0 if measure_stalls else None

    def to_host(self, copy: HostCopy, source: Tensor) -> None:
        self._out.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._out):
            copy.host.copy_(source, non_blocking=True)
            departure = self._out.record_event()
        copy.device_bytes = source
        self._in_flight.append((weakref.ref(copy), source, departure))
        self._in_flight_bytes += source.numel()
        while self._in_flight and (self._in_flight_bytes > self._max_in_flight_bytes or self._in_flight[0][2].query()):
            self._release_oldest()

    def _release_oldest(self) -> None:
        """Forget a source. Its memory is used again only after what the compute stream waits for here."""
        reference, source, departure = self._in_flight.popleft()
        self._in_flight_bytes -= source.numel()
        self._stall(departure)
        copy = reference()
        if copy is not None and copy.device_bytes is source:
            copy.device_bytes = None

    def to_device(self, copy: HostCopy) -> None:
        copy.device_bytes = torch.empty_like(copy.host, device=self._device)
        # After whatever used this memory before, and after the copy to the host, which `_release_oldest` waited for.
        self._back.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._back):
            copy.device_bytes.copy_(copy.host, non_blocking=True)
            copy.arrival = self._back.record_event()

    def wait(self, copy: HostCopy) -> None:
        if copy.arrival is not None:
            self._stall(copy.arrival)
        while self._in_flight and self._in_flight[-1][0]() is None:  # backward is done with it: no one reads the copy
            self._in_flight_bytes -= self._in_flight.pop()[1].numel()

    def finish(self) -> None:
        """From here on, in stream order, the slabs and all device memory may be used again."""
        self._in_flight.clear()
        self._in_flight_bytes = 0
        self._out.wait_stream(self._back)
        torch.cuda.current_stream(self._device).wait_stream(self._out)
        if self._measure_stalls:
            torch.cuda.synchronize(self._device)
            waited = sum(start.elapsed_time(end) for start, end in self._stalls) / 1000
            self.stall_seconds = (self.stall_seconds or 0.0) + waited
            self._stalls.clear()

    def _stall(self, event: Any) -> None:
        compute = torch.cuda.current_stream(self._device)
        if not self._measure_stalls:
            compute.wait_event(event)
            return
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record(compute)
        compute.wait_event(event)
        end.record(compute)
        self._stalls.append((start, end))
