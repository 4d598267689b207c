"""The mask proof: what trains, said before step 1, on every run.

For each source and role the tokens and the trained tokens; the rows cut and left out; the targets that truncation
took; whether a stop token that ends an answer trains; two examples. Three things are violations, because each makes a
useless model under a healthy loss: no stop token trains, a source gives nothing to train, more than half of the targets
were cut. All of whole rows as they were prepared; `laid` looks at them as they are used.
(A source of whose rows none can be trained on has no proof: it is refused where it is read.)

All plain data: the command line draws it, `as_data` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np

from sftctl.engine.data.labels import Chunk
from sftctl.engine.data.ledger import SourceLedger
from sftctl.engine.data.rendering import ROLES
from sftctl.engine.data.store import TRAINED, Store
from sftctl.engine.data.tokens import Tokenizer
from sftctl.errors import Origin, Problem

EXAMPLE_TOKENS = 400


@dataclass(frozen=True, slots=True)
class RoleCount:
    """The tokens of one role, and those of them that are targets."""

    role: str
    tokens: int
    trained: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of tokens that train, or do not, as text."""

    text: str
    trained: bool
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Example:
    """One row as the model will see it. `row` counts from 1; `more` tokens were left out at the end."""

    row: int
    pieces: tuple[Piece, ...]
    more: int = 0


@dataclass(frozen=True, slots=True)
class SourceProof:
    """What one source trains. `rows_used` counts the samples that the mixture takes of its `rows`."""

    source: str
    where: str
    format: str
    rows: int
    rows_used: int
    tokens: int
    trained_tokens: int
    roles: tuple[RoleCount, ...]
    rows_dropped: Mapping[str, int]
    rows_truncated: int
    rows_nothing_to_train: int
    trained_tokens_cut: int
    straddling_tokens: int
    stop_tokens: tuple[str, ...]
    rows_stop_trained: int
    examples: tuple[Example, ...]
    notes: tuple[str, ...]

    @property
    def trained_share(self) -> float:
        """Trained tokens of all tokens."""
        return self.trained_tokens / self.tokens if self.tokens else 0.0

    @property
    def cut_share(self) -> float:
        """Of the targets before truncation, those it took."""
        before = self.trained_tokens + self.trained_tokens_cut
        return self.trained_tokens_cut / before if before else 0.0


@dataclass(frozen=True, slots=True)
class MaskProof:
    """What all sources train, and what is wrong with it."""

    sources: tuple[SourceProof, ...]
    violations: tuple[Problem, ...]

    @classmethod
    def of(cls, sources: Sequence[SourceProof]) -> MaskProof:
        """The proof of all sources, with what is wrong with each."""
        return cls(tuple(sources), tuple(problem for source in sources for problem in violations(source)))

    def as_data(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "sources": [
                asdict(source) | {"trained_share": source.trained_share, "cut_share": source.cut_share}
                for source in self.sources
            ],
            "violations": [
                {"path": problem.path, "message": problem.message, "help": problem.help} for problem in self.violations
            ],
        }


class Tally:
    """Counts over the chunks of one source as they go by."""

    def __init__(self) -> None:
        self._roles = np.zeros((len(ROLES), 2), dtype=np.int64)
        self.rows_stop_trained = 0
        self.straddling = 0

    def add(self, chunk: Chunk) -> None:
        """Count the rows that are kept, as they are kept."""
        codes = np.bincount(chunk.roles * 2 + chunk.trained, minlength=2 * len(ROLES)).reshape(-1, 2)
        self._roles[:, 0] += codes.sum(axis=1)
        self._roles[:, 1] += codes[:, 1]
        self.rows_stop_trained += int((chunk.sums(chunk.trained & chunk.stops) > 0).sum())
        self.straddling += int(chunk.straddling.sum())

    @property
    def tokens(self) -> int:
        return int(self._roles[:, 0].sum())

    @property
    def trained(self) -> int:
        return int(self._roles[:, 1].sum())

    def as_data(self) -> dict[str, Any]:
        roles = [
            [role, int(tokens), int(trained)]
            for role, (tokens, trained) in zip(ROLES, self._roles, strict=True)
            if tokens
        ]
        return {"roles": roles, "rows_stop_trained": self.rows_stop_trained}


def prove(store: Store, ledger: SourceLedger, *, where: str, tokenizer: Tokenizer) -> SourceProof:
    """The proof of one prepared source."""
    meta = store.meta
    picks = sorted({0, len(store) // 2}) if len(store) else []
    return SourceProof(
        source=ledger.source,
        where=where,
        format=ledger.format,
        rows=ledger.rows_kept,
        rows_used=ledger.rows_used,
        tokens=ledger.tokens,
        trained_tokens=ledger.trained_tokens,
        roles=tuple(RoleCount(*row) for row in meta["tally"]["roles"]),
        rows_dropped=ledger.reasons,
        rows_truncated=ledger.rows_truncated,
        rows_nothing_to_train=ledger.reasons.get("nothing_to_train", 0),
        trained_tokens_cut=ledger.trained_tokens_cut,
        straddling_tokens=ledger.straddling_tokens,
        stop_tokens=tuple(meta["stop_tokens"]),
        rows_stop_trained=meta["tally"]["rows_stop_trained"],
        examples=tuple(example(store, index, tokenizer) for index in picks),
        notes=tuple(meta["notes"]),
    )


def example(store: Store, index: int, tokenizer: Tokenizer) -> Example:
    """Row `index` of a store as runs of trained and untrained text."""
    start = int(store.starts[index])
    end = min(int(store.starts[index + 1]), start + EXAMPLE_TOKENS)
    ids = store.ids[start:end].tolist()
    trained = (store.flags[start:end] & TRAINED).astype(bool).tolist()
    weights = store.weights[start:end].tolist() if store.weights is not None else [1.0] * len(ids)
    pieces = []
    for (is_trained, weight), group in groupby(
        zip(ids, trained, weights, strict=True), key=lambda token: (token[1], token[2] if token[1] else 1.0)
    ):
        text = tokenizer.decode([token[0] for token in group], skip_special_tokens=False)
        pieces.append(Piece(str(text), is_trained, weight))
    return Example(int(store.rows[index]), tuple(pieces), int(store.starts[index + 1]) - end)


def violations(proof: SourceProof) -> list[Problem]:
    """What the proof of one source finds wrong."""
    found = []
    origin = Origin("data", proof.source)
    if not proof.rows_used:
        what = f"nothing of this source trains: the mixture takes none of its {proof.rows} rows"
        found.append(Problem(proof.where, what, origin, "raise its fraction or weight, or leave the source out"))
    if not proof.rows_stop_trained:
        stops = ", ".join(proof.stop_tokens)
        what = (
            f"none of the stop tokens ({stops}) trains in any of the {proof.rows} rows"
            if stops
            else "the tokenizer has no stop token to train"
        )
        hint = (
            "the rows are cut before they end: raise sft.max_length"
            if proof.rows_truncated == proof.rows
            else "set model.eos_token, or a chat template that ends each answer with it: a model that never sees its "
            "end never stops"
        )
        found.append(Problem(proof.where, what, origin, hint))
    if proof.cut_share > 0.5:
        found.append(
            Problem(
                proof.where,
                f"truncation cuts {proof.cut_share:.0%} of the targets, {proof.trained_tokens_cut} tokens",
                origin,
                'raise sft.max_length, or drop long rows with sft.truncation_mode = "drop"',
            )
        )
    return found
