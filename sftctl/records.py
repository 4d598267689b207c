"""The frozen records that travel between rooms. Standard library and numpy only.

    rows -> Rendered -> Sample -> Bins -> Batch -> StepReport -> RunResult

Shapes: N samples, P pieces, K bins, D documents, B rows, L positions, T = B * L.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

IGNORE_INDEX = -100
"""The label that trains nothing, as in `torch.nn.functional.cross_entropy`."""


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `[start, end)` of a rendered text that train, each token in it with `weight`."""

    start: int
    end: int
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Rendered:
    """A row as the text a model reads, and the character spans that train.

    `templated` text carries its special tokens in the text and is tokenised without added ones.
    """

    text: str
    spans: tuple[Span, ...]
    templated: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """A tokenised row. `labels[t]` is `input_ids[t]` where that token trains, else IGNORE_INDEX (not shifted)."""

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    weights: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class GenerationPrompt:
    """A held-out row to be answered: the ids up to and with the generation prompt, and the answer it has."""

    input_ids: NDArray[np.int32]
    prompt: str
    reference: str


@dataclass(frozen=True, slots=True)
class Bins:
    """Documents laid into bins, by index; the tokens are not touched.

    Piece p is `sample[p][start[p] : start[p] + length[p]]`; bin k holds pieces `offsets[k]:offsets[k+1]`.
    Lengths (3, 4, 1) at max_length 4 with bfd: sample (1, 0, 2), start (0, 0, 0), length (4, 3, 1),
    offsets (0, 1, 3). Without packing each sample is its own bin.
    """

    sample: NDArray[np.int32]
    start: NDArray[np.int32]
    length: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch, ready for the model.

    Flat (padding-free) batches have B = 1 and no padding. `labels[b, t]` is the target of position t: it is
    shifted already, and IGNORE_INDEX at the last token of every document. `cu_seqlens` are the document
    boundaries over the T flattened positions, int32 [D + 1], 0 first and T last; no document crosses a row,
    and padding is a document of its own, at the end of its row: `row_tokens`, [B], counts what is before it (None:
    there is no padding). Two documents of 3 and 2 tokens in one row of 5:

        position_ids  0 1 2 0 1        cu_seqlens  0 3 5

    `continues`, [D]: a document may go on from another before it, the prefix that it shares with others: it sees
    both, and its positions go on from there (-1: from none; None: none does). A prefix of 3 tokens that two
    documents of 2 and 1 tokens go on from:

        position_ids  0 1 2 3 4 3      cu_seqlens  0 3 5 6      continues  -1 0 0
    """

    input_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    cu_seqlens: NDArray[np.int32]
    weights: NDArray[np.float32] | None
    num_tokens: int
    num_supervised: int
    samples: tuple[int, ...]
    row_tokens: NDArray[np.int64] | None = None
    continues: NDArray[np.int32] | None = None


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimiser step, over the whole global batch. The names are those of metrics.jsonl.

    `router_aux_loss` is a mixture of experts' own, without its coefficient, and no part of `loss`.
    """

    step: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    mean_token_accuracy: float
    entropy: float
    num_tokens: int
    num_trained_tokens: int
    tokens_per_second: float
    step_seconds: float
    peak_memory_bytes: int
    samples: tuple[int, ...] = ()
    router_aux_loss: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A held-out prompt, the model's greedy answer, what was expected, and whether its stop token ended it."""

    prompt: str
    answer: str
    reference: str
    stopped: bool

    @property
    def exact(self) -> bool:
        return self.answer.strip() == self.reference.strip()


@dataclass(frozen=True, slots=True)
class EvalReport:
    """One evaluation: `eval_loss` and the like by name, and the answers that were generated."""

    step: int
    epoch: float
    metrics: Mapping[str, float]
    answers: tuple[Answer, ...] = ()


@dataclass(frozen=True, slots=True)
class RunResult:
    """What `sftctl.train` returns: the run directory, the last metrics, the best value of the chosen metric."""

    path: Path
    last_metrics: Mapping[str, Any]
    best_metric: float | None
    steps: int
    answers: tuple[Answer, ...] = field(default=(), repr=False)
