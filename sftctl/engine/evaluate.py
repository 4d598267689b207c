"""Evaluation: the loss over held-out rows, and answers generated for some of them.

Sums over all supervised tokens divided once, as in training, so `eval_loss` does not depend on the batch size.
`eval_exact_match` is the share of prompts whose greedy answer equals the reference (white space at the ends
aside); `eval_stopped` the share that ended by its stop token within `max_new_tokens`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from sftctl.engine.distributed import Ranks
from sftctl.engine.step import Forward
from sftctl.records import Answer, Batch, GenerationPrompt

Generate = Callable[[Sequence[GenerationPrompt]], Sequence[Answer]]


@torch.no_grad()
def evaluate_loss(model: Any, forward: Forward, batches: Iterable[Batch], *, ranks: Ranks) -> dict[str, float]:
    """`eval_loss`, `eval_mean_token_accuracy`, `eval_entropy`, `eval_num_trained_tokens`; no dropout, no gradient."""
    was_training = model.training
    model.eval()
    try:
        totals = torch.zeros(4, dtype=torch.float64)
        for batch in batches:
            sums = forward(batch)
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


def answer_metrics(answers: Sequence[Answer]) -> Mapping[str, float]:
    """`eval_exact_match` and `eval_stopped` of generated answers; nothing where none were generated."""
    if not answers:
        return {}
    return {
        "eval_exact_match": sum(answer.exact for answer in answers) / len(answers),
        "eval_stopped": sum(answer.stopped for answer in answers) / len(answers),
    }
