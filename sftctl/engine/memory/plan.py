"""What a run will hold in memory at its peak, counted before anything loads.

The model is built on the meta device, where tensors have shapes and no bytes, and its forward pass runs there
once: saved-tensor hooks count what it would keep for the backward pass, by decoder block. Everything else follows
from the parameters. Of a step there are two moments that can be the peak:

    the backward pass begins    weights, masters, optimiser, activations, head and loss; with several micro-batches
                                a step, or on a CPU, all gradients too, else the head's alone
    the backward pass ends      weights, masters, optimiser, all gradients, one block's activations

All is counted for full sequences (`batch size · max_length` tokens, every one of them supervised), which packing
comes near to and other data stays below. Attention is counted as what it keeps for documents of that length:
queries, keys, values and output.

Shapes: T tokens of a micro-batch, V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface

from sftctl.engine.memory.offloading import MIN_OFFLOAD_BYTES
from sftctl.engine.model.attention import forward_kwargs
from sftctl.engine.model.checkpointing import KEPT, Mode
from sftctl.engine.model.head import base_model
from sftctl.engine.ranks.sharding import blocks_of
from sftctl.engine.training.losses import head_bytes
from sftctl.engine.training.optim import WHOLE_STATES, state_bytes
from sftctl.errors import ModelError, Problem
from sftctl.records import Batch

_PLANNED = "sftctl_planned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The settings that memory depends on, beside the model."""

    batch_size: int
    accumulation: int
    max_length: int
    checkpointing: Mode
    offloading: bool
    compute_dtype: torch.dtype
    optimizer: str
    device: Literal["cpu", "cuda"]
    bits: int | None = None
    shards: int = 1
    cpu_offload: bool = False

    @property
    def num_tokens(self) -> int:
        return self.batch_size * self.max_length


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes that a forward pass without checkpointing keeps: outside the blocks, and for all blocks together.

    `inputs`: of the blocks; `products`: of matrix products and attention in them, what "selective" keeps;
    `largest`: the block that keeps most; `small`: tensors too small to be offloaded, of all blocks.
    """

    outside: int
    blocks: int
    inputs: int
    products: int
    largest: int
    small: int

    def times(self, factor: int) -> Activations:
        return Activations(**{name: factor * getattr(self, name) for name in self.__slots__})


@dataclass(frozen=True, slots=True)
class ActivationCount:
    """Activations of any number of tokens: the straight line through two short passes."""

    short: Activations
    long: Activations
    num_short: int
    num_long: int
    blocks: int

    def at(self, num_tokens: int) -> Activations:
        share = (num_tokens - self.num_short) / (self.num_long - self.num_short)

        def line(name: str) -> int:
            low, high = getattr(self.short, name), getattr(self.long, name)
            return int(max(0, round(low + (high - low) * share)))

        found = Activations(**{name: line(name) for name in Activations.__slots__})
        too_small = found.blocks // max(1, self.blocks) < MIN_OFFLOAD_BYTES
        return replace(found, small=found.blocks) if too_small else found


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes at the peak, by what they are for, and what is held in host memory beside it."""

    parts: Mapping[str, int]
    host: int = 0

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def plan_memory(model: Any, count: ActivationCount, setup: Setup, *, resident: int = 0) -> MemoryPlan:
    """The peak of one rank. `model` is on the meta device, its adapter in it; `resident` what the process holds.

    Weights that train are held in the compute dtype and in float32, gradients in float32.
    """
    model = base_model(model)
    found = count.at(setup.num_tokens)
    parts = {"libraries": resident, **_weights(model, setup)}
    kept, host = _kept(found, setup, count.blocks)
    head, head_gradient = _head(model, setup)
    gradients = parts.pop("gradients")
    # A CPU run keeps the memory that it frees, and gradients fit badly into what activations have left there.
    all_at_once = setup.accumulation > 1 or setup.device == "cpu"
    at_begin = gradients if all_at_once else head_gradient // setup.shards
    if kept + head + at_begin >= found.largest + gradients:
        parts |= {"gradients": at_begin, "activations": kept, "head and loss": head}
    else:
        parts |= {"gradients": gradients, "activations": found.largest, "head and loss": 0}
    if setup.cpu_offload and setup.shards > 1 and setup.device == "cuda":
        for name in ("master weights", "optimiser", "gradients"):
            host, parts[name] = host + parts[name], 0
    return MemoryPlan(parts, host)


def _weights(model: nn.Module, setup: Setup) -> dict[str, int]:
    """Of one rank: with n shards it holds its n-th part, and the weights of the largest block and of the root whole.

    Quantised weights are whole on every rank.
    """
    parameters = list(model.named_parameters())
    trained = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
    size, wide = setup.compute_dtype.itemsize, 4
    blocks = blocks_of(model)
    packed = _packed(blocks, setup)
    packed_bytes = packed * (setup.bits or 0) // 8
    computed = (sum(p.numel() for _, p in parameters) - packed) * size + packed_bytes
    count = sum(parameter.numel() for _, parameter in trained)
    masters = count * wide if size < wide else 0
    states = state_bytes(setup.optimizer, trained)
    if setup.shards == 1:
        return {"weights": computed, "master weights": masters, "optimiser": states, "gradients": count * wide}
    sizes = [sum(p.numel() for p in block.parameters()) for block in blocks]
    gathered = (max(sizes, default=0) + sum(p.numel() for _, p in parameters) - sum(sizes)) * size
    gathered = max(0, gathered - packed * size // max(1, len(blocks)))
    n = setup.shards
    frozen = computed - packed_bytes - count * size
    return {
        "weights": packed_bytes + frozen // n + gathered,
        "master weights": count * wide // n,
        "optimiser": states if setup.optimizer in WHOLE_STATES else states // n,
        "gradients": count * wide // n,
    }


def _packed(blocks: list[nn.Module], setup: Setup) -> int:
    """Weights that bitsandbytes quantises: frozen matrices of linear layers in the blocks."""
    if setup.bits is None:
        return 0
    linear = (m for block in blocks for m in block.modules() if isinstance(m, nn.Linear))
    return sum(module.weight.numel() for module in linear if not module.weight.requires_grad)


def _kept(found: Activations, setup: Setup, num_blocks: int) -> tuple[int, int]:
    """(bytes on the device, bytes in host memory) when the backward pass begins, by checkpointing and offloading."""
    if setup.checkpointing is False:
        blocks, again = found.blocks, 0
    elif setup.checkpointing == "selective":
        blocks, again = found.inputs + found.products, max(0, found.largest - found.products // max(1, num_blocks))
    else:
        blocks, again = found.inputs, found.largest
    if not setup.offloading:
        return found.outside + blocks + again, 0
    moved = max(0, found.outside + blocks - found.small)
    if setup.device == "cpu":  # the host's memory is the device's
        return found.outside + blocks + again, 0
    fetched_ahead = blocks // max(1, num_blocks)
    return found.small + fetched_ahead + again, moved


def _head(model: Any, setup: Setup) -> tuple[int, int]:
    """(bytes of the loss while it works, bytes of the head's gradient)."""
    output, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    weight = embedding.weight if output is None else output.weight
    num_vocab, num_dims = weight.shape
    trains = weight.requires_grad
    used = head_bytes(
        setup.num_tokens, num_vocab=num_vocab, num_dims=num_dims, dtype=setup.compute_dtype, device=setup.device
    )
    return used, num_vocab * num_dims * 4 if trains else 0


# ---------------------------------------------------------------------- activations


def count_activations(model: Any, *, dtype: torch.dtype) -> ActivationCount:
    """What forward passes keep in `dtype`, of a model on the meta device.

    The grouped products of experts have no float32 form there: such a model is counted in bf16, twice.
    Raises ModelError for a model whose forward pass needs numbers.
    """
    model = base_model(model)
    try:
        return _counted(model, dtype)
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        if "Expected inputs of BF16 type" in str(error) and dtype is not torch.bfloat16:
            half = _counted(model, torch.bfloat16)
            return replace(half, short=half.short.times(2), long=half.long.times(2))
        message = f"the activations of a {type(model).__name__} cannot be counted: {str(error).splitlines()[0]}"
        help = "train one step, and see peak_memory_bytes in metrics.jsonl"
        raise ModelError(Problem("", message, help=help)) from error


def _counted(model: Any, dtype: torch.dtype) -> ActivationCount:
    short, long = 64, 128
    with _planned(model, dtype):
        return ActivationCount(_count(model, short), _count(model, long), short, long, len(blocks_of(model)))


def _count(model: Any, num_tokens: int) -> Activations:
    blocks = blocks_of(model)
    tally = _Tally(model, blocks)
    with tally, torch.autograd.graph.saved_tensors_hooks(tally.pack, _same):
        model.base_model(**forward_kwargs(_one_row(num_tokens), device="meta", model=model))
    return tally.result()


class _Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]  # of torch's own class
    """Counts storages as they are saved, each once, for the block that is running (-1: none)."""

    def __init__(self, model: nn.Module, blocks: list[nn.Module]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.blocks = blocks
        self.running = -1
        self.inputs = 0
        self.products: dict[int, int] = {}
        self.saved: dict[int, tuple[int, int]] = {}
        self.alive: list[Tensor] = []
        self.fixed = {_key(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self.handles: list[Any] = []

    def __enter__(self) -> _Tally:
        for number, block in enumerate(self.blocks):
            self.handles += [
                block.register_forward_pre_hook(self._enter(number), with_kwargs=True),
                block.register_forward_hook(self._leave),
            ]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self.handles:
            handle.remove()

    def _enter(self, number: int) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.running = number
            hidden = args[0] if args else kwargs.get("hidden_states")
            self.inputs += hidden.nbytes if isinstance(hidden, Tensor) else 0

        return hook

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.running = -1

    def pack(self, tensor: Tensor) -> Tensor:
        key = _key(tensor)
        if key not in self.fixed and key not in self.saved:
            self.saved[key] = (self.running, tensor.untyped_storage().nbytes())
            self.alive.append(tensor)
        return tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.running >= 0 and func in KEPT and isinstance(result, Tensor):
            self.alive.append(result)
            self.products[_key(result)] = result.untyped_storage().nbytes()
        return result

    def result(self) -> Activations:
        each = [sum(size for block, size in self.saved.values() if block == n) for n in range(len(self.blocks))]
        return Activations(
            outside=sum(size for block, size in self.saved.values() if block < 0),
            blocks=sum(each),
            inputs=self.inputs,
            products=sum(self.products.values()),
            largest=max(each, default=0),
            small=0,
        )


@contextmanager
def _planned(model: Any, dtype: torch.dtype) -> Iterator[None]:
    """The model as it computes: in training mode, in `dtype`, with an attention that keeps what ours keeps."""
    before = {parameter: parameter.data for parameter in model.parameters()}
    attention, training = model.config._attn_implementation, model.training
    model.train()
    for parameter in before:
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    if model._supports_attention_backend:
        model.set_attn_implementation(_PLANNED)
    try:
        yield
    finally:
        model.train(training)
        if model._supports_attention_backend:
            model.set_attn_implementation(attention)
        for parameter, data in before.items():
            parameter.data = data


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_BHLD: Tensor, key_BKLD: Tensor, value_BKLD: Tensor) -> Tensor:
        out_BLHD = query_BHLD.new_empty(*query_BHLD.transpose(1, 2).shape[:3], value_BKLD.shape[-1])
        ctx.save_for_backward(query_BHLD, key_BKLD, value_BKLD, out_BLHD)
        return out_BLHD

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise AssertionError("nothing is trained on the meta device")


def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    return _Attention.apply(query, key, value), None  # type: ignore[no-untyped-call]


AttentionInterface.register(_PLANNED, _attention)


def _one_row(length: int) -> Batch:
    ids = np.zeros((1, length), dtype=np.int64)
    bounds = np.array([0, length], dtype=np.int32)
    return Batch(ids, np.arange(length)[None], ids, bounds, None, length, length, ())


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _same(tensor: Tensor) -> Tensor:
    return tensor
