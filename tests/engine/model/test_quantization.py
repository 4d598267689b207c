"""Weights in few bits: refused where they cannot be had, before anything loads; trained on where they can."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from sftctl.engine.model import quantization
from sftctl.engine.model.quantization import quantization_config, refuse_without_bitsandbytes
from sftctl.errors import ModelError

CUDA = torch.device("cuda", 0)


def refused(**given: Any) -> str:
    with pytest.raises(ModelError) as error:
        refuse_without_bitsandbytes(**{"bits": 4, "device": CUDA, "init": "pretrained", **given})
    return str(error.value)


def without_bitsandbytes(monkeypatch: pytest.MonkeyPatch, *, installed: bool) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        quantization.importlib.util,
        "find_spec",
        lambda name, *rest: installed or None if name == "bitsandbytes" else find_spec(name, *rest),
    )


def test_each_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(device=torch.device("cpu"), bits=8) == (
        "peft.load_in_8bit: 8-bit weights need a CUDA device, and this run computes on cpu; leave peft.load_in_8bit "
        "out: an adapter trains on whole weights too"
    )
    assert refused(init="random").startswith("peft.load_in_4bit: weights are quantised while they load, and random")
    without_bitsandbytes(monkeypatch, installed=False)
    assert refused() == (
        "peft.load_in_4bit: 4-bit weights need bitsandbytes, which is not installed; pip install 'sftctl[quant]'"
    )
    without_bitsandbytes(monkeypatch, installed=True)
    refuse_without_bitsandbytes(bits=4, device=CUDA, init="pretrained")


def test_the_leaves_become_transformers_own_config() -> None:
    pytest.importorskip("bitsandbytes")
    four = quantization_config(
        bits=4,
        compute_dtype=torch.bfloat16,
        bnb_4bit_quant_type="fp4",
        use_bnb_nested_quant=True,
        bnb_4bit_quant_storage="bfloat16",
    )
    assert (four.load_in_4bit, four.load_in_8bit, four.bnb_4bit_quant_type) == (True, False, "fp4")
    assert (four.bnb_4bit_use_double_quant, four.bnb_4bit_compute_dtype) == (True, torch.bfloat16)
    assert four.bnb_4bit_quant_storage == torch.bfloat16
    assert quantization_config(bits=8, compute_dtype=torch.float32).load_in_8bit
