"""The front door of the data path: sources in, `Prepared` out, with its ledger and its proof.

    prepared = prepare((Source("train.jsonl"),), tokenizer=tokenizer, max_length=1024, assistant_only_loss=True)
    prepared.lengths            int32 [N], after truncation
    prepared.sample(0)          Sample(input_ids, labels, weights)

Each source is prepared for itself; mixing is an order of (source, row) over them, and tokens are not touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sftctl.engine.data.digests import digest_of_text
from sftctl.engine.data.labels import TruncationMode
from sftctl.engine.data.ledger import Ledger, source_ledger_from
from sftctl.engine.data.pipeline import Kit, Pipeline, Settings
from sftctl.engine.data.proof import MaskProof, prove, violations
from sftctl.engine.data.rendering import Loss
from sftctl.engine.data.sources import Source, open_source
from sftctl.engine.data.store import Store, Writer
from sftctl.engine.data.tokens import Tokenizer
from sftctl.errors import DataError, Problem
from sftctl.records import IGNORE_INDEX, GenerationPrompt, Sample


@dataclass(frozen=True)
class Prepared:
    """Tokenised, labelled rows in their order, N of them. Immutable; arrays may be memory-mapped."""

    stores: tuple[Store, ...]
    source_of: NDArray[np.int16]
    row_of: NDArray[np.int64]
    fingerprint: str
    ledger: Ledger
    proof: MaskProof
    tokenizer: Tokenizer = field(repr=False)
    cached: bool = False

    def __len__(self) -> int:
        return len(self.row_of)

    @property
    def lengths(self) -> NDArray[np.int32]:
        """int32 [N], tokens of each sample after truncation."""
        lengths = np.empty(len(self), dtype=np.int32)
        for number, store in enumerate(self.stores):
            mine = self.source_of == number
            lengths[mine] = store.lengths[self.row_of[mine]]
        return lengths

    def sample(self, index: int) -> Sample:
        """Sample `index` of N."""
        store, row = self.stores[self.source_of[index]], self.row_of[index]
        part = slice(store.starts[row], store.starts[row + 1])
        ids = np.asarray(store.ids[part])
        labels = np.where(store.trained[part].astype(bool), ids, np.int32(IGNORE_INDEX))
        return Sample(ids, labels, None if store.weights is None else np.asarray(store.weights[part]))

    def select(self, indices: NDArray[np.int64]) -> Prepared:
        """These samples, in this order. The ledger and the proof stay those of the whole."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Prepared(
            self.stores,
            self.source_of[chosen],
            self.row_of[chosen],
            digest_of_text(self.fingerprint, chosen.tobytes().hex()),
            self.ledger,
            self.proof,
            self.tokenizer,
            self.cached,
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
        held_out = np.sort(np.random.Generator(np.random.PCG64(seed)).permutation(len(self))[:size])
        rest = np.setdiff1d(np.arange(len(self)), held_out)
        return self.select(rest), self.select(held_out)

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
    on_bad_row: Literal["error", "skip"] = "error",
    on_mask_problem: Literal["error", "warn"] = "error",
    cache_dir: Path | None = None,
    where: str = "data.datasets",
) -> Prepared:
    """Read, render, tokenise and label all rows of the sources.

    `max_length = None` keeps rows whole (for packing that splits them). `cache_dir = None` keeps all in memory.
    `where` names the sources in error texts. Raises DataError with all it knows to be wrong; with
    `on_mask_problem = "warn"` violations of the mask proof are left in `Prepared.proof` instead.
    """
    if not sources:
        raise DataError(Problem(where, "there is no source", help="name one: --dataset FILE"))
    loss = Loss(completion_only_loss, assistant_only_loss, last_turn_only_loss)
    settings = Settings(max_length, truncation_mode, loss, dataset_text_field, on_bad_row)
    kit = Kit(tokenizer)
    places = [f"{where}[{index}]" for index in range(len(sources))]
    stores = []
    for source, place in zip(sources, places, strict=True):
        opened = open_source(source, where=place, memo_dir=cache_dir)
        stores.append(Pipeline(source, opened, settings, kit).run(Writer()))
    ledgers = [source_ledger_from(store.meta["ledger"]) for store in stores]
    proofs = [
        prove(store, ledger, where=place, tokenizer=tokenizer)
        for store, ledger, place in zip(stores, ledgers, places, strict=True)
    ]
    proof = MaskProof(tuple(proofs), tuple(problem for each in proofs for problem in violations(each)))
    if proof.violations and on_mask_problem == "error":
        raise DataError(*proof.violations)
    source_of = np.repeat(np.arange(len(stores), dtype=np.int16), [len(store) for store in stores])
    row_of = np.concatenate([np.arange(len(store), dtype=np.int64) for store in stores])
    fingerprint = digest_of_text(*(store.fingerprint for store in stores))
    return Prepared(tuple(stores), source_of, row_of, fingerprint, Ledger(tuple(ledgers)), proof, tokenizer)
