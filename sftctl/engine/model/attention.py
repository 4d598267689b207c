"""Attention in which documents that share a row never see each other, on any device, and the proof of it.

Registered with Transformers' AttentionInterface as "sftctl_varlen", and on purpose not with its mask interface:
models then build no mask at all (`masking_utils` gives None for a name it does not know), and the boundaries of
the documents travel as the keyword `documents` through the model's forward to each layer. Flat [1, T] and padded
[B, L] batches are the same to it: documents over T = B * L positions, padding a document of its own.

| where | what computes |
|---|---|
| CUDA, bf16 or fp16, head size a multiple of 8 up to 256 | `torch.nn.attention.varlen`, torch's own flash attention |
| CPU; float32; soft-capped scores, sinks, dropout | `blockwise`: batched products, exact, linear memory |
| keys of a cache, attention that is not causal | one dense product with its mask |

Other implementations isolate by Transformers' own means, given positions that restart, no mask and no cache:
"sdpa", "eager" and "flex_attention" build a block-diagonal mask from the positions (windows and chunks included),
flash attention takes the boundaries. Any of the three conditions left out leaks, silently: a logit of a second
document then moves by 0.68 on a tiny Llama when the first one changes. So `isolation_self_test` measures it.

Shapes: B rows, L positions (S of the keys, where a cache holds some), T = B * L, H heads, K key-value heads,
D head size.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PreTrainedModel
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from sftctl.engine.model.blockwise import Scores, blockwise_attention
from sftctl.engine.model.documents import Documents
from sftctl.errors import ModelError, Problem
from sftctl.records import Batch

VARLEN = "sftctl_varlen"
FLASH = ("flash_attention_2", "flash_attention_3")
BY_POSITION = ("sdpa", "eager", "flex_attention")

_KERNEL_KEYWORDS = frozenset(inspect.signature(varlen_attn).parameters)
"""torch 2.11 has no `enable_gqa`; 2.12 and later do."""


@torch.compiler.disable  # type: ignore[untyped-decorator]
def varlen_attention(
    module: nn.Module,
    query_BHLD: Tensor,
    key_BKSD: Tensor,
    value_BKSD: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    documents: Documents | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that layers call; output [B, L, H, D]. Without `documents`, each row is one."""
    if position_bias is not None:
        raise _refusal("this model adds a position bias to its scores, which varlen does not know", to="sdpa")
    B, _, L, D = query_BHLD.shape
    S = key_BKSD.shape[2]
    scores = Scores(D**-0.5 if scaling is None else scaling, softcap, sliding_window, dropout)
    causal = module.is_causal if is_causal is None else is_causal
    if L != S or not causal or attention_mask is not None:
        return _dense(query_BHLD, key_BKSD, value_BKSD, attention_mask, scores, s_aux, causal=bool(causal)), None
    if documents is None:
        documents = Documents.rows(B, L)
    assert documents.cu_seqlens[-1] == B * L, "the documents of another batch"
    # Some rotary embeddings give queries and keys in float32 beside values in bf16.
    query_THD, key_TKD, value_TKD = (
        tensor.to(value_BKSD.dtype).transpose(1, 2).flatten(0, 1) for tensor in (query_BHLD, key_BKSD, value_BKSD)
    )
    if _kernel_takes(query_THD, value_TKD, scores, s_aux):
        out_THD = kernel_attention(query_THD, key_TKD, value_TKD, documents, scores)
    else:
        out_THD = blockwise_attention(query_THD, key_TKD, value_TKD, documents, scores, s_aux)
    return out_THD.view(B, L, *out_THD.shape[1:]), None


AttentionInterface.register(VARLEN, varlen_attention)


def _kernel_takes(query_THD: Tensor, value_TKD: Tensor, scores: Scores, sinks_H: Tensor | None) -> bool:
    D = query_THD.shape[-1]
    return (
        query_THD.is_cuda
        and query_THD.dtype in (torch.bfloat16, torch.float16)
        and value_TKD.shape[-1] == D
        and D % 8 == 0
        and D <= 256
        and scores.softcap is None
        and scores.dropout == 0.0
        and sinks_H is None
        and torch.cuda.get_device_capability(query_THD.device) >= (8, 0)
    )


def kernel_attention(
    query_THD: Tensor, key_TKD: Tensor, value_TKD: Tensor, documents: Documents, scores: Scores
) -> Tensor:
    """Attention output [T, H, D] by torch's kernel, of what `_kernel_takes`."""
    device = query_THD.device
    bounds, key_bounds, positions = (
        documents.bounds(device),
        documents.key_bounds(device),
        documents.key_positions(device),
    )
    if positions is not None:
        key_TKD, value_TKD = (_Copied.apply(tensor, positions) for tensor in (key_TKD, value_TKD))  # type: ignore[no-untyped-call]
    groups = query_THD.shape[1] // key_TKD.shape[1]
    keywords: dict[str, Any] = {}
    if "enable_gqa" in _KERNEL_KEYWORDS:
        keywords["enable_gqa"] = groups > 1
    elif groups > 1:
        key_TKD, value_TKD = (tensor.repeat_interleave(groups, dim=1) for tensor in (key_TKD, value_TKD))
    longest, most_keys = documents.longest, documents.most_keys
    # (-1, 0) is plain causal, the last query at the last key; a window of w holds the query's own position and w - 1
    # before it.
    window = (-1 if scores.window is None or scores.window >= most_keys else scores.window - 1, 0)
    out_THD = varlen_attn(
        query_THD, key_TKD, value_TKD, bounds, key_bounds, longest, most_keys,
        scale=scores.scale, window_size=window, **keywords,
    )  # fmt: skip
    assert isinstance(out_THD, Tensor), "no log-sum-exp was asked for"
    return out_THD


class _Copied(torch.autograd.Function):
    """Keys by their positions, some of them more than once; their gradient is added up in float32."""

    @staticmethod
    def forward(ctx: Any, tensor_TKD: Tensor, positions: Tensor) -> Tensor:
        ctx.save_for_backward(positions)
        ctx.length = len(tensor_TKD)
        return tensor_TKD.index_select(0, positions)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (positions,) = ctx.saved_tensors
        exact = grad.new_zeros((ctx.length, *grad.shape[1:]), dtype=torch.promote_types(grad.dtype, torch.float32))
        return exact.index_add_(0, positions, grad.to(exact.dtype)).to(grad.dtype), None


def _dense(
    query_BHLD: Tensor,
    key_BKSD: Tensor,
    value_BKSD: Tensor,
    attention_mask: Tensor | None,
    scores: Scores,
    sinks_H: Tensor | None,
    *,
    causal: bool,
) -> Tensor:
    """Rows whole, queries aligned with the last keys: a step of generation, or attention that looks both ways."""
    B, H, L, D = query_BHLD.shape
    K, S = key_BKSD.shape[1:3]
    logits = (query_BHLD.reshape(B, K, -1, D) @ key_BKSD.transpose(2, 3)).view(B, H, L, S) * scores.scale
    if scores.softcap is not None:
        logits = torch.tanh(logits / scores.softcap) * scores.softcap
    if causal and not (L == 1 and (scores.window is None or scores.window >= S)):
        query, key = torch.arange(S - L, S, device=logits.device)[:, None], torch.arange(S, device=logits.device)
        hidden = key > query if scores.window is None else (key > query) | (key <= query - scores.window)
        logits = logits.masked_fill(hidden, -math.inf)
    if attention_mask is not None:
        attention_mask = attention_mask[..., -S:]  # a windowed layer's cache holds the last keys only
        added = attention_mask.dtype != torch.bool
        logits = logits + attention_mask if added else logits.masked_fill(~attention_mask, -math.inf)
    if sinks_H is not None:
        logits = torch.cat([logits, sinks_H.view(1, H, 1, 1).to(logits.dtype).expand(B, H, L, 1)], dim=-1)
    probabilities = torch.softmax(logits, dim=-1)[..., :S]
    if scores.dropout:
        probabilities = nn.functional.dropout(probabilities, scores.dropout)
    out = probabilities.reshape(B, K, -1, S).to(value_BKSD.dtype) @ value_BKSD
    return out.view(B, H, L, -1).transpose(1, 2)


def resolve_implementation(requested: str, *, model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> str:
    """The name to give Transformers for `model.attn_implementation` as configured.

    "auto" is "varlen" wherever the model's layers ask the interface and attend to all or to a window before them;
    else "sdpa" or "eager". Raises ModelError for one that this model or machine does not have.
    """
    if requested == "auto":
        if _takes_varlen(model):
            return VARLEN
        return "sdpa" if model._supports_sdpa else "eager"
    if requested == "varlen":
        if not _takes_varlen(model):
            raise _refusal(f"{type(model).__name__} does not let another attention function in")
        return VARLEN
    if requested in FLASH:
        installed = {"flash_attention_2": is_flash_attn_2_available, "flash_attention_3": is_flash_attn_3_available}
        if device.type != "cuda":
            raise _refusal(f"{requested} runs on CUDA, not on {device.type}")
        if not installed[requested]():
            raise _refusal(f"{requested} is not installed")
        if dtype == torch.float32:
            raise _refusal(f'{requested} computes in bf16 or fp16, and train.precision is "fp32"')
    return requested


def _refusal(message: str, *, to: str = "auto") -> ModelError:
    help = f'set model.attn_implementation = "{to}"'
    return ModelError(Problem("model.attn_implementation", message, help=help))


def _takes_varlen(model: PreTrainedModel) -> bool:
    text = model.config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ())  # a foreign object: few configs have it
    return bool(model._supports_attention_backend) and "chunked_attention" not in kinds


def set_implementation(model: PreTrainedModel, implementation: str) -> None:
    """Switch a loaded model's attention function. Raises ModelError where it cannot be switched."""
    try:
        model.set_attn_implementation(implementation)
    except (ValueError, ImportError):
        raise _refusal(f"{type(model).__name__} has no {implementation} attention") from None


def implementation_of(model: Any) -> str:
    """The attention function that a loaded model (or a wrapper that shows its config) uses."""
    return str(model.config.get_text_config()._attn_implementation)


def forward_kwargs(batch: Batch, *, device: torch.device | str = "cpu", model: Any = None) -> dict[str, Any]:
    """Keyword arguments of the model's forward for this batch: ids, positions, no cache, document boundaries.

    Without `model`, what "sftctl_varlen" takes; with it, what its implementation takes.
    """
    device = torch.device(device)
    implementation = VARLEN if model is None else implementation_of(model)
    inputs: dict[str, Any] = {
        "input_ids": torch.from_numpy(batch.input_ids).to(device, non_blocking=True),
        "position_ids": torch.from_numpy(batch.position_ids).to(device, non_blocking=True),
        "use_cache": False,
    }
    documents = Documents(batch.cu_seqlens, batch.continues)
    assert batch.continues is None or implementation == VARLEN, "only varlen knows what a document continues"
    if implementation == VARLEN:
        inputs["documents"] = documents
    elif implementation in FLASH:
        bounds, longest = documents.bounds(device), documents.longest
        inputs |= {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}
    accepted = None if model is None else _accepted(type(model).forward)
    return inputs if accepted is None else {name: value for name, value in inputs.items() if name in accepted}


@lru_cache(maxsize=64)
def _accepted(forward: Callable[..., object]) -> frozenset[str] | None:
    """The keywords that a model's forward takes; None where it takes any. Asked once: it costs 0.1 ms a batch."""
    parameters = inspect.signature(forward).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return None if takes_any else frozenset(parameters)


@dataclass(frozen=True, slots=True)
class IsolationReport:
    """The largest move of a logit of document 2 on account of document 1, and the largest allowed."""

    max_difference: float
    tolerance: float
    passed: bool


_TOLERANCES = {torch.float64: (1e-6, 1e-8), torch.float32: (1e-2, 1e-4)}
"""As shares of the logits' root mean square: against document 2 alone (other shapes, other rounding), and against
another document 1 (the same shapes: no rounding at all but in a mixture of experts)."""

_HALF_TOLERANCES = (0.5, 0.1)


def tolerances(model: Any) -> tuple[float, float]:
    """Of a model's logits, as above: computed in other shapes, and in the same."""
    return _TOLERANCES.get(next(model.parameters()).dtype, _HALF_TOLERANCES)


@torch.no_grad()
def isolation_self_test(
    model: Any, *, vocab_size: int | None = None, lengths: tuple[int, int] = (9, 7), seed: int = 0
) -> IsolationReport:
    """Document 2 after document 1 in one row, against document 2 alone and against document 2 after another.

    The second comparison is the sharper one, the first sees what does not depend on content (a position that goes
    on). Runs 41 tokens; modes, gradients and random state are left as they were.
    """
    first, second = lengths
    generator = np.random.default_rng(seed)
    vocabulary = vocab_size or model.config.get_text_config().vocab_size
    one, two, other = (generator.integers(0, vocabulary, length) for length in (first, second, first))
    with _evaluation_mode(model):
        alone, after, after_other = (
            _logits(model, documents)[-second:] for documents in ((two,), (one, two), (other, two))
        )
    scale = float(alone.square().mean().sqrt())
    loose, tight = tolerances(model)
    moves = (
        (float((after - alone).abs().max()), loose * scale),
        (float((after - after_other).abs().max()), tight * scale),
    )
    # The one nearest to its limit (or furthest beyond it), for the report.
    difference, tolerance = max(moves, key=lambda move: move[0] / move[1] if move[1] else math.inf)
    return IsolationReport(difference, tolerance, passed=difference <= tolerance)


@torch.no_grad()
def looks_ahead(model: Any, *, length: int = 8) -> bool:
    """Whether a logit depends on a later token: then this is no causal language model."""
    vocabulary = model.config.get_text_config().vocab_size
    whole = np.random.default_rng(0).integers(0, vocabulary, length)
    with _evaluation_mode(model):
        short, long = _logits(model, (whole[:-2],)), _logits(model, (whole,))[:-2]
    loose, _ = tolerances(model)
    return float((long - short).abs().max()) > 0.1 * loose * float(short.square().mean().sqrt())


def isolates(model: Any) -> bool:
    """Whether documents may share a row of this model: measured, not looked up."""
    return isolation_self_test(model).passed


def _logits(model: Any, documents: tuple[NDArray[np.int64], ...]) -> Tensor:
    """Logits [T, V] of documents in one row."""
    ids = np.concatenate(documents)[None]
    positions = np.concatenate([np.arange(len(document)) for document in documents])[None]
    bounds = np.cumsum([0, *(len(document) for document in documents)]).astype(np.int32)
    return row_logits(model, Batch(ids, positions, ids, bounds, None, ids.size, 0, ()))


def row_logits(model: Any, row: Batch) -> Tensor:
    """Logits [T, V] of a batch of one row, float32 or wider, on the host."""
    logits: Tensor = model(**forward_kwargs(row, device=model.device, model=model)).logits[0]
    return logits.to("cpu", torch.promote_types(logits.dtype, torch.float32))


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """No dropout, no checkpointing; each module's own mode comes back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
