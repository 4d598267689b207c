"""Base weights in 8 or 4 bits, by bitsandbytes: LLM.int8() and QLoRA's NF4 (arXiv 2208.07339, 2305.14314).

They are quantised while they load, straight onto the device, and stay frozen under an adapter. Embedding, norms
and output layer are not quantised. bitsandbytes is used on CUDA alone; elsewhere the settings are refused before
anything loads.
"""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

import torch

from sftctl.errors import ModelError, Problem


def quantization_config(
    *,
    bits: Literal[4, 8],
    compute_dtype: torch.dtype,
    bnb_4bit_quant_type: str = "nf4",
    use_bnb_nested_quant: bool = False,
    bnb_4bit_quant_storage: str | None = None,
) -> Any:
    """Transformers' BitsAndBytesConfig. `compute_dtype` is what 4-bit weights are unpacked to for a product."""
    from transformers import BitsAndBytesConfig  # which looks for bitsandbytes

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=use_bnb_nested_quant,
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_quant_storage=bnb_4bit_quant_storage,
    )


def is_quantized(parameter: torch.nn.Parameter) -> bool:
    """Whether it is one of bitsandbytes' own kinds, whatever dtype it is stored in."""
    return type(parameter).__module__.startswith("bitsandbytes.")


def refuse_without_bitsandbytes(*, bits: Literal[4, 8], device: torch.device, init: str) -> None:
    """Raise ModelError, before anything loads, where weights cannot be had in so many bits."""
    path = f"peft.load_in_{bits}bit"
    if init == "random":
        message = "weights are quantised while they load, and random ones are not loaded"
        raise ModelError(Problem(path, message, help='set model.init = "pretrained", or leave it out'))
    if device.type != "cuda":
        message = f"{bits}-bit weights need a CUDA device, and this run computes on {device.type}"
        raise ModelError(Problem(path, message, help=f"leave {path} out: an adapter trains on whole weights too"))
    if importlib.util.find_spec("bitsandbytes") is None:
        message = f"{bits}-bit weights need bitsandbytes, which is not installed"
        raise ModelError(Problem(path, message, help="pip install 'sftctl[quant]'"))
