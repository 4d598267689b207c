"""torch.compile, decoder block by decoder block.

A block is compiled once for all blocks that share its class, with symbolic lengths, so that batches of other
lengths run the same code. What it buys is the elementwise work between matrix products (norms, rotary embedding,
gated activation, residuals): one pass over memory instead of a dozen, and less of it kept for the backward pass,
since the partitioner recomputes there what is cheap. Attention stays outside of the graph: `varlen_attention`
depends on the documents of the batch. What it costs is the first step: docs/reference/performance.md has both.

Evaluation and generation run uncompiled: their shapes differ, and each would compile code of its own.

With gradient checkpointing the checkpoint goes around the compiled block, so block inputs alone are kept.
"selective" asks for what the partitioner does by itself, and gets no checkpoint on top.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from sftctl.engine.model.checkpointing import Mode
from sftctl.errors import ModelError, Problem

CPU_COMPILERS = ("g++", "clang++", "c++")
LEAVE_OUT = "set train.torch_compile = false"


def compile_blocks(model: nn.Module, *, gradient_checkpointing: Mode, device: torch.device) -> None:
    """Compile the forward and backward pass of each decoder block, in training. The model's other methods stay.

    Raises ModelError where this machine has no compiler, or this model no blocks that can be told apart.
    """
    _refuse_without_compiler(device)
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not blocks:
        raise _refusal(f"{type(model).__name__} has no decoder blocks of Transformers' kind to compile", help=LEAVE_OUT)
    for block in blocks:
        block.forward = _forward(block, checkpointed=gradient_checkpointing is True)


def _forward(block: Any, *, checkpointed: bool) -> Callable[..., Any]:
    plain = type(block).forward.__wrapped__  # without Transformers' checkpoint, which dynamo would have to trace
    compiled = _compiled(plain)

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not (block.training and torch.is_grad_enabled()):
            return plain(block, *args, **kwargs)
        if checkpointed:
            return checkpoint(partial(compiled, block, **kwargs), *args, use_reentrant=False)
        return compiled(block, *args, **kwargs)

    return forward


@lru_cache(maxsize=64)
def _compiled(plain: Callable[..., Any]) -> Callable[..., Any]:
    """One for each class of blocks: dynamo keeps compiled code by function."""
    compiled: Callable[..., Any] = torch.compile(plain, dynamic=True)
    return compiled


def _refuse_without_compiler(device: torch.device) -> None:
    if device.type == "cuda":
        if find_spec("triton") is None:
            raise _refusal("compiling for CUDA needs Triton, which is not installed")
        return
    named = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ([named] if named else CPU_COMPILERS)):
        what = f"$CXX names {named}, which is not there" if named else f"there is none of {', '.join(CPU_COMPILERS)}"
        raise _refusal(f"compiling for a CPU needs a C++ compiler, and {what}")


def _refusal(message: str, *, help: str = f"install one, or {LEAVE_OUT}") -> ModelError:
    return ModelError(Problem("train.torch_compile", message, help=help))
