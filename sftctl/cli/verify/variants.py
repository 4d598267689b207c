"""The same training, cut and laid out in other ways: which variants of a configuration must give the same curve.

Two families, each with a run of its own to be held against. In the first, steps are those of the configuration,
and only how a step is computed varies. Packing changes which rows share a step, so it is compared in the second,
where the first rows of the data make up every step, all of them at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import attrs

from sftctl.config.schema import Bundle

LOSS_CHUNK = 16
PADDED_TO = 16
LEAST_ROWS = 8
"""Of the family that packing is compared in: fewer rows would often fit one sequence."""

BASE, ROWS = "as configured", "all rows in one step"


class Variant(NamedTuple):
    """A run: what of the configuration it changes, and the run that it is held against ("" where it is one)."""

    name: str
    against: str
    changes: Mapping[str, Any]
    loss_chunk_size: int | None = None
    cannot: str = ""
    """Why it is not to be compared, known without running it."""


def common(bundle: Bundle, *, steps: int) -> dict[str, Any]:
    """What is changed for every run: float32, for which equality is promised; no random numbers; no evaluation;
    no balancing loss of a mixture of experts, which is a mean over a micro-batch by its definition.

    And one process, with the rows of all that were asked for: how ranks share them is a variant.
    """
    spread = bundle.distributed
    ranks = spread.nproc_per_node * spread.nnodes
    changes: dict[str, Any] = {
        "train.max_steps": steps,
        "train.precision": "fp32",
        "model.dtype": "float32",
        "data.eval_datasets": [],
        "data.test_split_size": None,
        "sft.router_aux_loss_coef": 0.0,
        "train.gradient_accumulation_steps": bundle.train.gradient_accumulation_steps * ranks,
        "distributed.strategy": "auto",
        "distributed.nproc_per_node": 1,
        "distributed.nnodes": 1,
        "distributed.node_rank": 0,
        "distributed.rdzv_endpoint": None,
        "distributed.hsdp_replicas": 1,
        "sft.share_prefix": None if bundle.sft.share_prefix else bundle.sft.share_prefix,
    }
    if bundle.peft.use_peft:
        changes["peft.lora_dropout"] = 0.0
    return changes


def variants(bundle: Bundle) -> Iterator[Variant]:
    """The runs of both families, each family's own first. `bundle` has the `common` changes already."""
    yield Variant(BASE, "", {})
    yield from _cuts(bundle)
    yield from _layouts(bundle)
    yield from _memory(bundle)
    yield Variant(f"loss in chunks of {LOSS_CHUNK} rows", BASE, {}, loss_chunk_size=LOSS_CHUNK)
    yield from _ranks(bundle)
    yield from _packings(bundle)


def _cut(batch_size: int, accumulation: int) -> dict[str, Any]:
    return {
        "train.per_device_train_batch_size": batch_size,
        "train.gradient_accumulation_steps": accumulation,
    }


def _cuts(bundle: Bundle) -> Iterator[Variant]:
    """Micro-batch times accumulation: one row at a time, half the micro-batch, twice the micro-batch.

    4 x 2 gives 1 x 8, 2 x 4 and 8 x 1.
    """
    size, accumulation = bundle.train.per_device_train_batch_size, bundle.train.gradient_accumulation_steps
    ways = [(1, size * accumulation)]
    if size % 2 == 0:
        ways.append((size // 2, accumulation * 2))
    if accumulation % 2 == 0:
        ways.append((size * 2, accumulation // 2))
    found = dict.fromkeys(way for way in ways if way != (size, accumulation))
    for way in found:
        yield Variant(f"micro-batches of {way[0]}, {way[1]} a step", BASE, _cut(*way))
    if not found:
        yield Variant("micro-batches", BASE, {}, cannot="a step is one row: there is nothing to cut")


def _layouts(bundle: Bundle) -> Iterator[Variant]:
    padded = bundle.sft.padding_free is False
    yield Variant("flat" if padded else "padded", BASE, {"sft.padding_free": padded})
    if bundle.sft.pad_to_multiple_of != PADDED_TO:
        yield Variant(f"lengthened to a multiple of {PADDED_TO}", BASE, {"sft.pad_to_multiple_of": PADDED_TO})
    if bundle.sft.share_prefix is None and not padded:
        yield Variant("prefixes not shared", BASE, {"sft.share_prefix": False})
    if bundle.model.attn_implementation != "sdpa":
        layout = {} if bundle.sft.packing else {"sft.padding_free": False}
        yield Variant("attention: sdpa", BASE, {"model.attn_implementation": "sdpa", **layout})


def _memory(bundle: Bundle) -> Iterator[Variant]:
    names = {False: "no checkpointing", True: "full checkpointing", "selective": "selective checkpointing"}
    for mode, name in names.items():
        if mode != bundle.train.gradient_checkpointing:
            yield Variant(name, BASE, {"train.gradient_checkpointing": mode})
    offloads = bundle.sft.activation_offloading
    yield Variant("no offloading" if offloads else "offloading", BASE, {"sft.activation_offloading": not offloads})


def _ranks(bundle: Bundle) -> Iterator[Variant]:
    """Two processes share the rows of a step: micro-batches where there are some to share, else each one's rows."""
    size, accumulation = bundle.train.per_device_train_batch_size, bundle.train.gradient_accumulation_steps
    cut = _cut(size, accumulation // 2) if accumulation % 2 == 0 else _cut(size // 2, accumulation)
    cannot = f"two processes cannot share {size * accumulation} rows" if size * accumulation % 2 else ""
    for strategy in ("fsdp", "ddp"):
        changes = {**cut, "distributed.strategy": strategy, "distributed.nproc_per_node": 2}
        yield Variant(f"2 processes, {strategy}", BASE, changes, cannot=cannot)


def _packings(bundle: Bundle) -> Iterator[Variant]:
    size, accumulation = bundle.train.per_device_train_batch_size, bundle.train.gradient_accumulation_steps
    rows = max(LEAST_ROWS, size * accumulation)
    limit = math.ceil(rows / max(1, len(bundle.data.datasets)))
    sources = [attrs.evolve(each, limit=min(limit, each.limit or limit)) for each in bundle.data.datasets]
    one_step = {"data.datasets": sources, **_cut(size, math.ceil(limit * len(sources) / size))}
    yield Variant(f"{ROWS}: not packed", "", {**one_step, "sft.packing": False})
    against = f"{ROWS}: not packed"
    packed = {"sft.packing": True, "sft.packing_strategy": "bfd"}
    yield Variant(f"{ROWS}: packed", against, {**one_step, **packed})
    yield Variant(f"{ROWS}: packed, padded", against, {**one_step, **packed, "sft.padding_free": False})
    if bundle.sft.packing and bundle.sft.packing_strategy == "wrapped":
        reason = "it cuts rows at any token, and a piece of a row is trained otherwise than the row"
        yield Variant(f"{ROWS}: wrapped", against, {}, cannot=reason)
