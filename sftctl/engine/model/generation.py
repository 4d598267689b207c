"""Greedy answers of the model that is being trained, for evaluation.

With our own attention, prompts of different lengths are answered together: padded on the left, the padding of a
row a document of its own, so that no answer depends on its companions; while tokens are added, the padding's
keys are masked. Other attention functions get prompts of one length at a time, which need no mask and no trust in
one. Keys and values are cached; a row that has had a stop token is fed along until all have, and cut afterwards.

Shapes: B prompts of a batch, L the longest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sftctl.engine.model.attention import VARLEN, implementation_of
from sftctl.engine.model.documents import Documents

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
    mixed = implementation_of(model) == VARLEN
    was_training = model.training
    model.eval()
    try:
        for batch in _batches([len(prompt) for prompt in prompts], batch_size, mixed=mixed):
            rows = _continue(model, [prompts[index] for index in batch], max_new_tokens, stop_token_ids, agree)
            for index, row in zip(batch, rows, strict=True):
                answers[index] = _cut(row, stop_token_ids)
    finally:
        model.train(was_training)
    return answers


def _batches(lengths: Sequence[int], batch_size: int, *, mixed: bool) -> Iterator[list[int]]:
    """Indices of at most `batch_size` prompts of like lengths (equal ones unless `mixed`), the shortest first.

    Lengths 3 5 3 and a batch of 2: [0, 2], [1]. A batch of 3: [0, 2, 1], or [0, 2], [1] unless mixed.
    """
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    start = 0
    for place in range(1, len(order) + 1):
        full = place - start == batch_size
        ended = place == len(order) or (not mixed and lengths[order[place]] != lengths[order[start]])
        if full or ended:
            yield order[start:place]
            start = place


def _continue(
    model: Any,
    prompts: Sequence[Ids],
    max_new_tokens: int,
    stop_token_ids: Sequence[int],
    agree: Callable[[Tensor], Tensor],
) -> NDArray[np.int64]:
    """`max_new_tokens` more tokens of each prompt, or fewer once every row has had a stop token."""
    stops = torch.tensor(list(stop_token_ids), device=model.device)
    inputs, real_BL = _padded(prompts, device=model.device)
    stopped_B = torch.zeros(len(prompts), dtype=torch.bool, device=model.device)
    new = []
    for _ in range(max_new_tokens):
        output = model(**inputs, use_cache=True, logits_to_keep=1)
        token_B1 = agree(output.logits[:, -1].argmax(-1, keepdim=True))
        new.append(token_B1)
        stopped_B |= torch.isin(token_B1[:, 0], stops)
        if bool(stopped_B.all()):
            break
        state = next(name for name in ("past_key_values", "cache_params") if name in output)  # the latter: Mamba
        inputs = {"input_ids": token_B1, state: output[state]}
        if real_BL is not None:
            real_BL = torch.nn.functional.pad(real_BL, (0, 1), value=True)
            inputs |= {"position_ids": real_BL.sum(1, keepdim=True) - 1, "attention_mask": real_BL[:, None, None]}
    tokens: NDArray[np.int64] = torch.cat(new, dim=1).cpu().numpy()
    return tokens


def _padded(prompts: Sequence[Ids], *, device: torch.device) -> tuple[dict[str, Any], Tensor | None]:
    """A forward's inputs, and where they are real [B, L]; None where nothing is padded.

    Prompts a a a and b:   a a a      positions 0 1 2    documents 0 3 5 6
                           - - b                0 1 0
    """
    lengths = np.array([len(prompt) for prompt in prompts])
    longest = int(lengths.max())
    if (lengths == longest).all():
        return {"input_ids": torch.from_numpy(np.stack(prompts).astype(np.int64)).to(device)}, None
    place_BL = np.arange(longest) - (longest - lengths)[:, None]
    real_BL = place_BL >= 0
    ids_BL = np.zeros(real_BL.shape, np.int64)
    ids_BL[real_BL] = np.concatenate(prompts)
    positions_BL = np.where(real_BL, place_BL, np.arange(longest))
    rows = np.arange(len(prompts)) * longest
    bounds = np.unique(np.concatenate([rows, rows + longest - lengths, [real_BL.size]])).astype(np.int32)
    inputs: dict[str, Any] = {
        "input_ids": torch.from_numpy(ids_BL).to(device),
        "position_ids": torch.from_numpy(positions_BL).to(device),
        "documents": Documents(bounds),
    }
    return inputs, torch.from_numpy(real_BL).to(device)


def _cut(row: NDArray[np.int64], stop_token_ids: Sequence[int]) -> NDArray[np.int64]:
    """[7, 2, 9] with stop token 2 is [7, 2]."""
    found = np.flatnonzero(np.isin(row, list(stop_token_ids)))
    return row[: found[0] + 1] if len(found) else row
