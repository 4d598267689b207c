"""The states of all random generators of a process, as plain JSON, and back, bit for bit.

Python's and numpy's Mersenne twisters, torch's on the CPU and on this rank's CUDA device. About 15 KB.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def capture(device: torch.device) -> dict[str, Any]:
    version, words, gauss = random.getstate()
    kind, key, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": {"version": version, "words": list(words), "gauss": _hex(gauss)},
        "numpy": {
            "kind": kind,
            "key": _text(np.asarray(key, dtype="<u4").tobytes()),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": _hex(float(cached)),
        },
        "torch": _text(torch.get_rng_state().numpy().tobytes()),
    }
    if device.type == "cuda":
        state["cuda"] = _text(torch.cuda.get_rng_state(device).numpy().tobytes())
    return state


def restore(state: Mapping[str, Any], device: torch.device) -> None:
    """Set all generators. A checkpoint of a machine without CUDA leaves the CUDA generator as seeded."""
    python = state["python"]
    random.setstate((python["version"], tuple(python["words"]), _from_hex(python["gauss"])))
    numpy = state["numpy"]
    key = np.frombuffer(base64.b64decode(numpy["key"]), dtype="<u4").astype(np.uint32)
    np.random.set_state((numpy["kind"], key, numpy["position"], numpy["has_gauss"], _from_hex(numpy["cached"])))
    torch.set_rng_state(_tensor(state["torch"]))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(_tensor(state["cuda"]), device)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)


def _hex(value: float | None) -> str | None:
    return None if value is None else value.hex()


def _from_hex(text: str | None) -> Any:
    return None if text is None else float.fromhex(text)
