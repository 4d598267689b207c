"""From a configuration to its memory plan, and to the cheapest change with which it fits."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import attrs
import torch

from sftctl.config.schema import Bundle
from sftctl.config.values import show_value
from sftctl.engine.assemble import tokenizer_of
from sftctl.engine.assemble_model import bits_of, meta_model_of, num_trainable
from sftctl.engine.memory.plan import ActivationCount, MemoryPlan, Setup, count_activations, plan_memory
from sftctl.engine.ranks.sharding import resolve_strategy
from sftctl.engine.training.precision import resolve_precision
from sftctl.runs.files import human_bytes

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class Change:
    """Settings that need less memory, by leaf; `same` whether what is learned stays the same."""

    settings: Mapping[str, Any]
    plan: MemoryPlan
    same: bool

    def __str__(self) -> str:
        settings = " and ".join(f"{path} = {show_value(value)}" for path, value in self.settings.items())
        effect = "trains the same" if self.same else "trains something else"
        return f"set {settings}, which {effect}"


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The plan of a run: what it takes, what there is, and, where that does not fit, the cheapest change that does."""

    device: Device
    precision: str
    num_parameters: int
    num_trained: int
    tokens_per_micro_batch: int
    plan: MemoryPlan
    memory: int
    change: Change | None

    @property
    def fits(self) -> bool:
        return self.plan.total <= self.memory


class Planner:
    """Plans one configuration and its neighbours; what each model keeps of activations is counted once."""

    def __init__(self, bundle: Bundle, *, device: Device) -> None:
        self.bundle, self.device = bundle, device
        self.tokenizer = tokenizer_of(bundle)
        self.precision = (
            resolve_precision(bundle.train.precision, torch.device(device))
            if _has(device)
            else ("fp32" if bundle.train.precision == "fp32" else "bf16")
        )
        self.resident = resident_bytes() if device == "cpu" else 0
        self._counted: dict[bool, tuple[Any, ActivationCount]] = {}

    def plan(self, bundle: Bundle) -> MemoryPlan:
        model, count = self.model(bundle)
        return plan_memory(model, count, self.setup(bundle), resident=self.resident)

    def model(self, bundle: Bundle) -> tuple[Any, ActivationCount]:
        adapts = bundle.peft.use_peft
        if adapts not in self._counted:
            model = meta_model_of(bundle, self.tokenizer, device=torch.device(self.device))
            self._counted[adapts] = (model, count_activations(model, dtype=self._dtype))
        return self._counted[adapts]

    @property
    def _dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def setup(self, bundle: Bundle) -> Setup:
        train, spread = bundle.train, bundle.distributed
        ranks = spread.nproc_per_node * spread.nnodes
        sharded = resolve_strategy(spread.strategy, ranks) == "fsdp"
        return Setup(
            batch_size=train.per_device_train_batch_size,
            accumulation=train.gradient_accumulation_steps,
            max_length=bundle.sft.max_length,
            checkpointing=train.gradient_checkpointing,
            offloading=bundle.sft.activation_offloading,
            compute_dtype=self._dtype,
            optimizer=bundle.optim.optimizer,
            device=self.device,
            bits=bits_of(bundle),
            shards=ranks // spread.hsdp_replicas if sharded else 1,
            cpu_offload=spread.fsdp_cpu_offload,
        )


def plan_run(bundle: Bundle, *, device: Device | None = None, memory: int | None = None) -> RunPlan:
    """The memory plan of a run on `device` with `memory` bytes; none: those of this machine.

    Raises ModelError for what can be said against the model without its weights.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    memory = memory if memory is not None else device_memory(device)
    planner = Planner(bundle, device=device)
    plan = planner.plan(bundle)
    trained, count = num_trainable(planner.model(bundle)[0])
    return RunPlan(
        device=device,
        precision=planner.precision,
        num_parameters=count,
        num_trained=trained,
        tokens_per_micro_batch=planner.setup(bundle).num_tokens,
        plan=plan,
        memory=memory,
        change=None if plan.total <= memory else _cheapest(planner, memory),
    )


def after_running_out(bundle: Bundle) -> tuple[str, str | None]:
    """What the plan was, in a line, and the cheapest change that needs a tenth less; for a run out of memory."""
    device: Device = "cuda" if torch.cuda.is_available() else "cpu"
    planner = Planner(bundle, device=device)
    plan = planner.plan(bundle)
    parts = ", ".join(f"{name} {human_bytes(number)}" for name, number in plan.parts.items() if number)
    memory = device_memory(device)
    change = _cheapest(planner, min(memory, plan.total * 9 // 10))
    text = f"the plan has {parts}: {human_bytes(plan.total)} of {human_bytes(memory)}"
    return text, None if change is None else f"{change} in {human_bytes(change.plan.total)}"


def _cheapest(planner: Planner, memory: int) -> Change | None:
    for settings, same in changes(planner.bundle, device=planner.device):
        plan = planner.plan(with_settings(planner.bundle, settings))
        if plan.total <= memory:
            return Change(settings, plan, same)
    return None


def changes(bundle: Bundle, *, device: Device) -> Iterator[tuple[dict[str, Any], bool]]:
    """Settings that need less memory, those that train the same first, and of these the faster first.

    A smaller micro-batch costs next to nothing, "selective" about a tenth of the time, full checkpointing a third,
    offloading what its transfers do not hide; an adapter trains other weights, and a shorter row other rows.
    """
    found = [settings for level in _levels(bundle, device) for settings in _batches(bundle, level)]
    yield from ((settings, True) for settings in found if settings)
    least = found[-1]
    if not bundle.peft.use_peft and bundle.model.init == "pretrained":
        yield {"peft.use_peft": True}, False
        yield {"peft.use_peft": True, **least}, False
        least = {"peft.use_peft": True, **least}
    length = bundle.sft.max_length // 2
    while length >= 128:
        yield {**least, "sft.max_length": length}, False
        length //= 2


def _levels(bundle: Bundle, device: Device) -> list[dict[str, Any]]:
    """From the present mode of checkpointing and offloading to those that keep less."""
    ways: list[bool | str] = [False, "selective", True]
    now = ways.index(bundle.train.gradient_checkpointing)
    levels = [{} if way == ways[now] else {"train.gradient_checkpointing": way} for way in ways[now:]]
    if device == "cuda" and not bundle.sft.activation_offloading:
        levels.append({**levels[-1], "sft.activation_offloading": True})
    return levels


def _batches(bundle: Bundle, level: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The level, with every smaller micro-batch that divides this one and as many more of them."""
    size, steps = bundle.train.per_device_train_batch_size, bundle.train.gradient_accumulation_steps
    yield level
    for smaller in range(size // 2, 0, -1):
        if size % smaller == 0:
            yield {
                "train.per_device_train_batch_size": smaller,
                "train.gradient_accumulation_steps": steps * (size // smaller),
                **level,
            }


def with_settings(bundle: Bundle, settings: Mapping[str, Any]) -> Bundle:
    """A copy with other leaves."""
    for path, value in settings.items():
        group, _, name = path.partition(".")
        bundle = attrs.evolve(bundle, **{group: attrs.evolve(getattr(bundle, group), **{name: value})})
    return bundle


# ---------------------------------------------------------------------- the machine


def _has(device: Device) -> bool:
    return device == "cpu" or torch.cuda.is_available()


def device_memory(device: Device) -> int:
    """Bytes that a run may have: of the first CUDA device, or of this machine and the limit of its container."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[1] if torch.cuda.is_available() else 0
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        try:
            memory = min(memory, int(limit.read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return memory


def resident_bytes() -> int:
    """What this process, with torch and transformers in it, holds now; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0
