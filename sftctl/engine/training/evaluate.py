"""Evaluation: the loss over held-out rows, and answers generated for some of them.

Sums over all supervised tokens divided once, as in training, so `eval_loss` does not depend on the batch size.
`eval_exact_match` is the share of prompts whose greedy answer equals the reference (white space at the ends
aside); `eval_stopped` the share that ended by its stop token within `max_new_tokens`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sftctl.engine.ranks.distributed import Ranks
from sftctl.engine.training.step import Forward
from sftctl.records import Answer, Batch, GenerationPrompt


@torch.no_grad()
def evaluate_loss(model: Any, forward: Forward, batches: Iterable[Batch], *, ranks: Ranks) -> dict[str, float]:
    """`eval_loss`, `eval_mean_token_accuracy`, `eval_entropy`, `eval_num_trained_tokens`; no dropout, no gradient."""
    was_training = model.training
    model.eval()
    try:
        totals = torch.zeros(4, dtype=torch.float64)
        for batch in batches:
            sums = forward(batch, 1.0)
            figures = [sums.loss, sums.num_correct, sums.entropy]
            totals[:3] += torch.stack([figure.detach().double().cpu() for figure in figures])
            totals[3] += batch.num_supervised
    finally:
        model.train(was_training)
    loss, correct, entropy, count = ranks.total(totals.tolist())
    share = 1.0 / max(1.0, count)
    return {
        "eval_loss": loss * share,
        "eval_mean_token_accuracy": correct * share,
        "eval_entropy": entropy * share,
        "eval_num_trained_tokens": int(count),
    }


def answers_of(
    prompts: Sequence[GenerationPrompt],
    generated: Sequence[NDArray[np.int64]],
    *,
    decode: Callable[[list[int]], str],
    stop_token_ids: Sequence[int],
) -> tuple[Answer, ...]:
    """Generated ids as text beside what was expected. `generated[i]` ends with a stop token if one was reached."""
    answers = []
    for prompt, ids in zip(prompts, generated, strict=True):
        stopped = len(ids) > 0 and int(ids[-1]) in stop_token_ids
        answers.append(Answer(prompt.prompt, decode(ids.tolist()), prompt.reference, stopped))
    return tuple(answers)


def answer_metrics(answers: Sequence[Answer]) -> dict[str, float]:
    """`eval_exact_match` and `eval_stopped` of generated answers; nothing where none were generated."""
    if not answers:
        return {}
    return {
        "eval_exact_match": sum(answer.exact for answer in answers) / len(answers),
        "eval_stopped": sum(answer.stopped for answer in answers) / len(answers),
    }
