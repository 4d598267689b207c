"""Greedy answers of the model that is being trained, for evaluation.

Prompts of one length are answered together, so that no row needs padding and every attention function serves,
those without a mask too. Keys and values are cached; a row that has reached a stop token is fed along until all
of its group have, and cut afterwards.

Shapes: B prompts of a group, L their length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ids = NDArray[np.integer[Any]]


@torch.no_grad()
def greedy(
    model: Any,
    prompts: Sequence[Ids],
    *,
    max_new_tokens: int,
    stop_token_ids: Sequence[int],
    batch_size: int,
    agree: Callable[[Tensor], Tensor] = lambda tokens: tokens,
) -> list[NDArray[np.int64]]:
    """The most likely continuation of each prompt, int64, in the prompts' order.

    An answer ends with the first stop token, which it includes, or after `max_new_tokens`. The model's mode is
    left as it was. `agree` gives of each new token what every rank is to go on with.
    """
    answers: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)] * len(prompts)
    was_training = model.training
    model.eval()
    try:
        for group in _groups(prompts, batch_size):
            rows = np.stack([prompts[index] for index in group]).astype(np.int64)
            for index, row in zip(group, _continue(model, rows, max_new_tokens, stop_token_ids, agree), strict=True):
                answers[index] = _cut(row, stop_token_ids)
    finally:
        model.train(was_training)
    return answers


def _groups(prompts: Sequence[Ids], batch_size: int) -> Iterator[list[int]]:
    """Indices of prompts of equal length, at most `batch_size` together. Lengths 3 5 3: [0, 2], [1]."""
    by_length: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(index)
    for indices in by_length.values():
        for start in range(0, len(indices), batch_size):
            yield indices[start : start + batch_size]


def _continue(
    model: Any,
    prompts_BL: NDArray[np.int64],
    max_new_tokens: int,
    stop_token_ids: Sequence[int],
    agree: Callable[[Tensor], Tensor],
) -> NDArray[np.int64]:
    """`max_new_tokens` more tokens of each row, or fewer once every row has had a stop token."""
    stops = torch.tensor(list(stop_token_ids), device=model.device)
    inputs = torch.from_numpy(prompts_BL).to(model.device)
    stopped_B = torch.zeros(len(inputs), dtype=torch.bool, device=model.device)
    cache, new = None, []
    for _ in range(max_new_tokens):
        output = model(input_ids=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        inputs = agree(output.logits[:, -1].argmax(-1, keepdim=True))
        new.append(inputs)
        stopped_B |= torch.isin(inputs[:, 0], stops)
        if bool(stopped_B.all()):
            break
    tokens: NDArray[np.int64] = torch.cat(new, dim=1).cpu().numpy()
    return tokens


def _cut(row: NDArray[np.int64], stop_token_ids: Sequence[int]) -> NDArray[np.int64]:
    """[7, 2, 9] with stop token 2 is [7, 2]."""
    found = np.flatnonzero(np.isin(row, list(stop_token_ids)))
    return row[: found[0] + 1] if len(found) else row
