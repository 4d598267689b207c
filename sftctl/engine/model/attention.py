"""Attention in which documents that share a row never see each other, on any device.

Registered with Transformers' AttentionInterface as "sftctl_varlen", without a mask function, so that models build
no mask at all; the document boundaries travel as the keyword argument `documents` through the model's forward.

Shapes: B rows, L positions, T = B * L, H query heads, K key-value heads, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import AttentionInterface, PreTrainedModel

from sftctl.records import Batch

VARLEN = "sftctl_varlen"


@dataclass(frozen=True, slots=True)
class Documents:
    """Boundaries of the documents of one batch over its T flattened positions: [0, end of first, ..., T]."""

    bounds: tuple[int, ...]

    @classmethod
    def of(cls, cu_seqlens: NDArray[np.int32]) -> Documents:
        return cls(tuple(int(bound) for bound in cu_seqlens))


def varlen_attention(
    module: nn.Module,
    query_BHLD: Tensor,
    key_BKLD: Tensor,
    value_BKLD: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    documents: Documents | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    B, H, L, _ = query_BHLD.shape
    bounds = documents.bounds if documents is not None else tuple(range(0, B * L + 1, L))
    pieces = []
    for start, end in pairwise(bounds):
        row, first = divmod(start, L)
        part = slice(first, first + end - start)
        pieces.append(
            F.scaled_dot_product_attention(
                query_BHLD[row : row + 1, :, part],
                key_BKLD[row : row + 1, :, part],
                value_BKLD[row : row + 1, :, part],
                is_causal=True,
                scale=scaling,
                dropout_p=dropout,
                enable_gqa=True,
            )
        )
    out = torch.cat(pieces, dim=2).transpose(1, 2).reshape(B, L, H, -1)
    return out, None


AttentionInterface.register(VARLEN, varlen_attention)


def choose_implementation(requested: str, model: PreTrainedModel, *, device: torch.device) -> str:
    if requested in ("auto", "varlen"):
        return VARLEN
    return requested


def set_implementation(model: PreTrainedModel, implementation: str) -> None:
    model.set_attn_implementation(implementation)


def forward_kwargs(batch: Batch, *, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What the model's forward needs for this batch: ids, positions, no cache, document boundaries."""
    return {
        "input_ids": torch.from_numpy(batch.input_ids).to(device),
        "position_ids": torch.from_numpy(batch.position_ids).to(device),
        "use_cache": False,
        "documents": Documents.of(batch.cu_seqlens),
    }
