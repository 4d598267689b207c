"""The rows of a run, from its configuration: sources prepared whole or opened as a stream, laid into bins, planned."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from sftctl.config.schema import Bundle, Dataset
from sftctl.config.table import thaw
from sftctl.engine.data.laid import proven
from sftctl.engine.data.origin import Source
from sftctl.engine.data.packing import one_each, pack
from sftctl.engine.data.plan import EpochPlan, evaluation_plan
from sftctl.engine.data.prepare import Prepared, default_cache_dir, prepare
from sftctl.engine.data.stream import open_stream
from sftctl.engine.splits import Split, StreamedSplit, WholeSplit
from sftctl.records import Bins

SPLITS_ROWS = frozenset({"bfd_split", "wrapped"})
"""Packing strategies that cut long rows into pieces instead of truncating them."""


def splits_of(bundle: Bundle, tokenizer: Any, *, world_size: int) -> tuple[Split, Split | None]:
    """What to train on and, if anything, to evaluate on. Raises DataError for all that is wrong with the rows."""
    training: Split
    if bundle.data.streaming:
        training = _streamed_split(bundle, tokenizer, world_size=world_size)
        held_out = _evaluation_rows(bundle, tokenizer)
    else:
        rows, held_out = _rows_of(bundle, tokenizer)
        training = _training_split(bundle, rows, world_size=world_size)
    return training, None if held_out is None else _evaluation_split(bundle, held_out, world_size=world_size)


def eval_packing(bundle: Bundle) -> bool:
    """Whether rows to evaluate on are packed."""
    return bundle.sft.packing if bundle.sft.eval_packing is None else bundle.sft.eval_packing


def _rows_of(bundle: Bundle, tokenizer: Any) -> tuple[Prepared, Prepared | None]:
    """The rows to train on, and those to evaluate on, if any."""
    data = bundle.data
    rows = _prepare(bundle, tokenizer, data.datasets, packing=bundle.sft.packing, where="data.datasets")
    if data.eval_datasets or data.test_split_size is None:
        return rows, _evaluation_rows(bundle, tokenizer)
    rows, held_out = rows.split(data.test_split_size, seed=bundle.run.seed)
    return rows, _first(held_out, bundle.eval.eval_samples)


def _evaluation_rows(bundle: Bundle, tokenizer: Any) -> Prepared | None:
    """The rows of `data.eval_datasets`: read whole, also where training rows are streamed."""
    if not bundle.data.eval_datasets:
        return None
    where, packing = "data.eval_datasets", eval_packing(bundle)
    rows = _prepare(bundle, tokenizer, bundle.data.eval_datasets, packing=packing, where=where)
    return _first(rows, bundle.eval.eval_samples)


def _first(rows: Prepared, limit: int | None) -> Prepared:
    return rows if limit is None else rows.select(np.arange(min(limit, len(rows))))


def _settings(bundle: Bundle, *, packing: bool) -> dict[str, Any]:
    """What decides tokens and masks, by the names of `data` and `sft`."""
    data, sft = bundle.data, bundle.sft
    whole = packing and sft.packing_strategy in SPLITS_ROWS
    return {
        "max_length": None if whole else sft.max_length,
        "truncation_mode": sft.truncation_mode,
        "completion_only_loss": sft.completion_only_loss,
        "assistant_only_loss": sft.assistant_only_loss,
        "last_turn_only_loss": sft.last_turn_only_loss,
        "dataset_text_field": data.dataset_text_field,
        "mixing": data.mixing,
        "stopping_strategy": data.stopping_strategy,
        "seed": bundle.run.seed,
        "dataset_num_proc": data.dataset_num_proc,
        "on_bad_row": data.on_bad_row,
        "on_mask_problem": data.on_mask_problem,
    }


def _sources(datasets: Sequence[Dataset]) -> list[Source]:
    return [
        Source(**{**attrs.asdict(dataset, recurse=False), "columns": thaw(dataset.columns)}) for dataset in datasets
    ]


def _prepare(bundle: Bundle, tokenizer: Any, datasets: Sequence[Dataset], *, packing: bool, where: str) -> Prepared:
    cache_dir = bundle.data.cache_dir
    return prepare(
        _sources(datasets),
        tokenizer=tokenizer,
        cache_dir=default_cache_dir() if cache_dir is None else Path(cache_dir),
        where=where,
        **_settings(bundle, packing=packing),
    )


def _streamed_split(bundle: Bundle, tokenizer: Any, *, world_size: int) -> StreamedSplit:
    """Training rows as a stream; its first window is read."""
    total_steps = bundle.train.max_steps
    assert total_steps is not None, "a rule of the configuration"
    packing = bundle.sft.packing
    stream = open_stream(
        _sources(bundle.data.datasets),
        tokenizer=tokenizer,
        lay=partial(_laid, bundle, packing=packing),
        batches=_batch_sizes(bundle, world_size),
        shuffle=bundle.data.shuffle,
        end_step=total_steps,
        **_settings(bundle, packing=packing),
    )
    return StreamedSplit(stream, total_steps)


def _batch_sizes(bundle: Bundle, world_size: int) -> dict[str, int]:
    train = bundle.train
    return {
        "batch_size": train.per_device_train_batch_size,
        "accumulation": train.gradient_accumulation_steps,
        "world_size": world_size,
    }


def _laid(bundle: Bundle, lengths: NDArray[np.int32], *, packing: bool) -> Bins:
    if packing:
        return pack(lengths, bundle.sft.max_length, bundle.sft.packing_strategy)
    return one_each(lengths)


def _training_split(bundle: Bundle, rows: Prepared, *, world_size: int) -> WholeSplit:
    bins = _laid(bundle, rows.lengths, packing=bundle.sft.packing)
    rows = proven(rows, bins, on_mask_problem=bundle.data.on_mask_problem)

    @lru_cache(maxsize=2)
    def plan(epoch: int) -> EpochPlan:
        return EpochPlan(
            bins,
            seed=bundle.run.seed,
            epoch=epoch,
            fingerprint=rows.fingerprint,
            shuffle=bundle.data.shuffle,
            **_batch_sizes(bundle, world_size),
        )

    return WholeSplit(rows, plan)


def _evaluation_split(bundle: Bundle, rows: Prepared, *, world_size: int) -> WholeSplit:
    bins = _laid(bundle, rows.lengths, packing=eval_packing(bundle))
    batch_size = bundle.eval.per_device_eval_batch_size
    plan = evaluation_plan(bins, fingerprint=rows.fingerprint, batch_size=batch_size, world_size=world_size)
    return WholeSplit(rows, lambda epoch: plan)
