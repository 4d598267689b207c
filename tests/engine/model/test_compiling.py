"""Blocks that cannot be compiled are refused with what to do. That compiled ones train the same: tests/trajectory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from sftctl.engine.model import compiling
from sftctl.engine.model.compiling import compile_blocks
from sftctl.errors import ModelError

CPU = torch.device("cpu")


@pytest.fixture
def model() -> nn.Module:
    shape = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2}
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    return LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2, num_key_value_heads=1, **tokens))


def refusal(model: nn.Module, device: torch.device = CPU) -> str:
    with pytest.raises(ModelError) as caught:
        compile_blocks(model, gradient_checkpointing=False, device=device)
    return str(caught.value)


def test_a_machine_without_a_compiler_is_told_what_to_install(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    said = refusal(model)
    assert "train.torch_compile: compiling for a CPU needs a C++ compiler, and there is none of g++, clang++" in said
    assert "install one, or set train.torch_compile = false" in said


def test_a_compiler_named_and_absent_is_named(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "$CXX names no-such-compiler, which is not there" in refusal(model)


def test_cuda_needs_triton(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "find_spec", lambda name: None)
    assert "compiling for CUDA needs Triton, which is not installed" in refusal(model, torch.device("cuda"))


def test_a_model_without_blocks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_refuse_without_compiler", lambda device: None)
    assert "Linear has no decoder blocks of Transformers' kind to compile" in refusal(nn.Linear(2, 2))


def test_evaluation_runs_the_block_as_it_is(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes of evaluation and generation would each compile code of their own."""
    monkeypatch.setattr(compiling, "_refuse_without_compiler", lambda device: None)
    monkeypatch.setattr(compiling, "_compiled", lambda plain: pytest.fail)
    ids = torch.arange(8)[None]
    expected = model(ids, use_cache=False).logits
    compile_blocks(model, gradient_checkpointing=False, device=CPU)
    assert torch.equal(model.eval()(ids, use_cache=False).logits, expected)
    with torch.no_grad():
        assert torch.equal(model.train()(ids, use_cache=False).logits, expected)
