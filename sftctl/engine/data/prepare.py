"""The front door of the data path: sources in, `Prepared` out, with its ledger and its proof.

    prepared = prepare((Source("train.jsonl"),), tokenizer=tokenizer, max_length=1024, assistant_only_loss=True)
    prepared.lengths            int32 [N], after truncation
    prepared.sample(0)          Sample(input_ids, labels, weights)

Each source is prepared for itself; mixing is an order of (source, row) over them, and tokens are not touched.
"""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sftctl.engine.data.cache import default_cache_dir, entry, key_of
from sftctl.engine.data.digests import DIGEST_BYTES, digest_of_text
from sftctl.engine.data.labels import TruncationMode
from sftctl.engine.data.ledger import Ledger, SourceLedger, source_ledger_from
from sftctl.engine.data.mixing import Mixing, Stopping, check_mixture, held_out, mix
from sftctl.engine.data.origin import Source
from sftctl.engine.data.pipeline import Pipeline
from sftctl.engine.data.proof import MaskProof, prove
from sftctl.engine.data.rendering import Loss
from sftctl.engine.data.sources import open_source
from sftctl.engine.data.store import TRAINED, Store, Writer
from sftctl.engine.data.tokens import Tokenizer
from sftctl.engine.data.worker import Kit, Settings
from sftctl.errors import DataError, Problem
from sftctl.records import IGNORE_INDEX, GenerationPrompt, Sample

BLOCK_ROWS = 2**16

__all__ = ["Prepared", "Source", "default_cache_dir", "prepare"]


@dataclass(frozen=True)
class Prepared:
    """Tokenised, labelled rows in their order, N of them. Immutable; arrays may be memory-mapped."""

    stores: tuple[Store, ...]
    source_of: NDArray[np.int16]
    row_of: NDArray[np.int32]
    fingerprint: str
    ledger: Ledger
    proof: MaskProof
    tokenizer: Tokenizer = field(repr=False)
    cached: bool = False
    prepare_seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.row_of)

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """int32 [N], tokens of each sample after truncation."""
        return self._per_sample([store.lengths_of for store in self.stores])

    @cached_property
    def num_trained(self) -> NDArray[np.int32]:
        """int32 [N], targets of each sample."""
        return self._per_sample([store.num_trained().take for store in self.stores])

    @cached_property
    def whole_lengths(self) -> NDArray[np.int32]:
        """int32 [N], tokens of each sample before truncation."""
        return self._per_sample([store.whole.take for store in self.stores])

    @cached_property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The ids that end an answer in these rows: the EOS token, and what the chat template ends a turn with."""
        return tuple(dict.fromkeys(index for store in self.stores for index in store.meta["stop_token_ids"]))

    def _per_sample(self, columns: Sequence[Callable[[NDArray[np.int32]], NDArray[np.int32]]]) -> NDArray[np.int32]:
        """A figure of each sample; `columns` give that of any rows of a source."""
        values = np.empty(len(self), dtype=np.int32)
        for part in _blocks(len(self)):
            for number in np.unique(self.source_of[part]):
                mine = self.source_of[part] == number
                values[part][mine] = columns[number](self.row_of[part][mine])
        return values

    def sample(self, index: int) -> Sample:
        """Sample `index` of N."""
        store, row = self.stores[self.source_of[index]], self.row_of[index]
        part = slice(store.starts[row], store.starts[row + 1])
        ids = np.asarray(store.ids[part])
        labels = np.where(store.flags[part] & TRAINED, ids, np.int32(IGNORE_INDEX))
        return Sample(ids, labels, None if store.weights is None else np.asarray(store.weights[part]))

    def gather(self, sample: NDArray[np.int32], start: NDArray[np.int32], length: NDArray[np.int32]) -> Sample:
        """Pieces `sample[d][start[d] : start[d] + length[d]]`, one after the other, as one Sample.

        Starts 4 and 0, lengths 2 and 3 of samples that begin at 10 and 50: places 14 15 50 51 52.
        """
        begins = np.cumsum(length, dtype=np.int64) - length
        size = int(length.sum())
        ids, flags = np.empty(size, np.int32), np.empty(size, np.uint8)
        weights = np.ones(size, np.float32) if any(store.weights is not None for store in self.stores) else None
        for number, store in enumerate(self.stores):
            mine = self.source_of[sample] == number
            if not mine.any():
                continue
            counts = length[mine]
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            place = within + np.repeat(store.starts[self.row_of[sample[mine]]] + start[mine], counts)
            target = within + np.repeat(begins[mine], counts)
            ids[target], flags[target] = store.ids[place], store.flags[place]
            if weights is not None and store.weights is not None:
                weights[target] = store.weights[place]
        return Sample(ids, np.where(flags & TRAINED, ids, np.int32(IGNORE_INDEX)), weights)

    def select(self, indices: NDArray[np.integer]) -> Prepared:
        """These samples, in this order. The ledger and the proof stay those of the whole."""
        source_of, row_of = self.source_of[indices], self.row_of[indices]
        return replace(
            self,
            source_of=source_of,
            row_of=row_of,
            fingerprint=digest_of_text(self.fingerprint, _digest_of_order(source_of, row_of)),
        )

    def split(self, test_split_size: float, *, seed: int) -> tuple[Prepared, Prepared]:
        """Hold out a share (below 1) or a number of samples: (train, test), the same for the same seed everywhere."""
        size = round(test_split_size * len(self)) if test_split_size < 1 else int(test_split_size)
        if not 0 < size < len(self):
            raise DataError(
                Problem(
                    "data.test_split_size",
                    f"{test_split_size:g} of {len(self)} rows: {len(self) - size} to train on and {size} to hold out",
                    help="both need at least one row",
                )
            )
        out = held_out(len(self), size, seed=seed)
        return self.select(np.flatnonzero(~out)), self.select(np.flatnonzero(out))

    def generation_prompts(self, n: int) -> tuple[GenerationPrompt, ...]:
        """The first `n` samples that have a whole prompt and answer, to be answered: exactly the ids trained on."""
        found: list[GenerationPrompt] = []
        for source, row in zip(self.source_of, self.row_of, strict=True):
            if len(found) == n:
                break
            store = self.stores[source]
            first, end = store.answers[row].tolist()
            if first <= 0:
                continue
            ids = np.asarray(store.ids[store.starts[row] : store.starts[row] + end])
            prompt = str(self.tokenizer.decode(ids[:first].tolist(), skip_special_tokens=False))
            reference = str(self.tokenizer.decode(ids[first:].tolist(), skip_special_tokens=True))
            found.append(GenerationPrompt(ids[:first], prompt, reference))
        return tuple(found)


def prepare(
    sources: Sequence[Source],
    *,
    tokenizer: Tokenizer,
    max_length: int | None = 1024,
    truncation_mode: TruncationMode = "keep_start",
    completion_only_loss: bool | None = None,
    assistant_only_loss: bool = False,
    last_turn_only_loss: bool = False,
    dataset_text_field: str = "text",
    mixing: Mixing = "concat",
    stopping_strategy: Stopping = "first_exhausted",
    seed: int = 0,
    dataset_num_proc: int | None = None,
    on_bad_row: Literal["error", "skip"] = "error",
    on_mask_problem: Literal["error", "warn"] = "error",
    cache_dir: Path | None = None,
    where: str = "data.datasets",
) -> Prepared:
    """Read, render, tokenise and label all rows of the sources.

    The names are those of the configuration's `data` and `sft`. `max_length = None` keeps rows whole (for packing
    that splits them). `cache_dir = None` keeps all in memory; `default_cache_dir()` is the user's. `seed` is for
    interleaving. `where` names the sources in error texts.

    Raises DataError: what is wrong with a source, or the violations of the mask proof, which with
    `on_mask_problem = "warn"` are left in `Prepared.proof` instead.
    """
    started = time.perf_counter()
    if not sources:
        raise DataError(Problem(where, "there is no source", help="name one: --dataset FILE"))
    check_mixture(sources, mixing=mixing, where=where)
    loss = Loss(completion_only_loss, assistant_only_loss, last_turn_only_loss)
    settings = Settings(max_length, truncation_mode, loss, dataset_text_field, on_bad_row)
    kit = Kit(tokenizer)
    places = [f"{where}[{index}]" for index in range(len(sources))]
    with _only_new_objects_collected():
        made = [
            _store_of(source, place, settings, kit, cache_dir, dataset_num_proc)
            for source, place in zip(sources, places, strict=True)
        ]
    stores = tuple(store for store, _ in made)
    counts = [len(store) for store in stores]
    source_of, row_of = mix(sources, counts, mixing=mixing, stopping_strategy=stopping_strategy, seed=seed, where=where)
    ledger = Ledger(tuple(_ledger_of(store, int((source_of == i).sum())) for i, store in enumerate(stores)))
    proof = MaskProof.of(
        [
            prove(store, book, where=place, tokenizer=tokenizer)
            for store, book, place in zip(stores, ledger.sources, places, strict=True)
        ]
    )
    if proof.violations and on_mask_problem == "error":
        raise DataError(*proof.violations)
    return Prepared(
        stores=stores,
        source_of=source_of,
        row_of=row_of,
        fingerprint=fingerprint_of(stores, source_of, row_of),
        ledger=ledger,
        proof=proof,
        tokenizer=tokenizer,
        cached=all(was_there for _, was_there in made),
        prepare_seconds=time.perf_counter() - started,
    )


def _store_of(
    source: Source, place: str, settings: Settings, kit: Kit, cache_dir: Path | None, num_proc: int | None
) -> tuple[Store, bool]:
    """One source's rows, and whether they were in the cache."""
    opened = open_source(source, where=place, memo_dir=cache_dir)

    def make(folder: Path | None) -> Store:
        with closing(Writer(folder)) as writer:
            return Pipeline(source, opened, settings, kit, num_proc=num_proc).run(writer)

    if cache_dir is None:
        return make(None), False
    reading = (source.path, source.format, sorted(source.columns.items()))
    key = key_of(opened.fingerprint(), kit.digest_text(), repr(settings), repr(reading))
    return entry(cache_dir, key, make)


@contextmanager
def _only_new_objects_collected() -> Iterator[None]:
    """Python's collector passes over what is there already: with torch imported, up to a fifth of preparing GSM8K."""
    freezes = gc.get_freeze_count() == 0
    if freezes:
        gc.freeze()
    try:
        yield
    finally:
        if freezes:
            gc.unfreeze()


def _blocks(count: int) -> Iterator[slice]:
    """Parts of an order: what is made of one on the way takes no memory that grows with the rows."""
    return (slice(begin, begin + BLOCK_ROWS) for begin in range(0, count, BLOCK_ROWS))


def _ledger_of(store: Store, rows_used: int) -> SourceLedger:
    return source_ledger_from({**store.meta["ledger"], "rows_used": rows_used}, store.dropped)


def fingerprint_of(stores: Sequence[Store], source_of: NDArray[np.int16], row_of: NDArray[np.int32]) -> str:
    """The name of rows in an order: of their contents alone."""
    return digest_of_text(*(store.fingerprint for store in stores), _digest_of_order(source_of, row_of))


def _digest_of_order(source_of: NDArray[np.int16], row_of: NDArray[np.int32]) -> str:
    state = hashlib.blake2b(source_of.data, digest_size=DIGEST_BYTES)
    state.update(row_of.data)
    return state.hexdigest()
