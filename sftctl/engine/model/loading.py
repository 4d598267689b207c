"""A causal language model from a folder, the hub, or nothing but its config.

Weights are read from safetensors only (a pickled checkpoint can run code), no code of the model's author runs
unless asked for, and a checkpoint that does not fill every weight is refused: Transformers would fill the rest
with random numbers and say so in a warning. `meta_model` does all of that but read weights: it builds the
model on the meta device, which costs no memory.

Random weights depend on `seed` alone; the caller's random state is left as it was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from sftctl.engine.model.architecture import NAME, build_config, hub_problem, locate, refuse_small_vocabulary
from sftctl.engine.model.attention import looks_ahead, resolve_implementation, set_implementation
from sftctl.engine.model.hub import cache_only, is_local
from sftctl.errors import ModelError, Problem

Init = Literal["pretrained", "random"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    *,
    name_or_path: str | None,
    init: Init = "pretrained",
    revision: str = "main",
    architecture: Mapping[str, Any] | None = None,
    dtype: str = "float32",
    attn_implementation: str = "auto",
    trust_remote_code: bool = False,
    model_init_kwargs: Mapping[str, Any] | None = None,
    vocab_size: int | None = None,
    token_ids: Mapping[str, int | None] | None = None,
    seed: int = 42,
    device: torch.device | str = "cpu",
    compute_dtype: torch.dtype | None = None,
    quantization_config: Any = None,
) -> PreTrainedModel:
    """The model, in training mode, on `device`, with the attention implementation that was resolved for it.

    `vocab_size` (ids the tokenizer can give) and `token_ids` (bos_token_id, eos_token_id, pad_token_id) are the
    tokenizer's; `compute_dtype` is what the model will compute in, where that is not its own dtype.
    `quantization_config` (Transformers') quantises pretrained weights while they load, straight onto the device.
    Raises ModelError for everything that a user can mend.
    """
    device = torch.device(device)
    config = _config(
        name_or_path=name_or_path,
        init=init,
        revision=revision,
        architecture=architecture,
        trust_remote_code=trust_remote_code,
        vocab_size=vocab_size,
        token_ids=token_ids,
    )
    resized = _set_aside_vocabulary(config, name_or_path, revision, init, architecture)
    with quiet_transformers():
        if init == "random":
            model = _random(config, dtype=dtype, trust_remote_code=trust_remote_code, seed=seed)
        else:
            assert name_or_path is not None
            _refuse_without_weights(name_or_path, quantised=_is_quantised(config))
            extra = dict(model_init_kwargs or {})
            if quantization_config is not None:
                extra |= {"quantization_config": quantization_config, "device_map": {"": device}}
            model = _pretrained(config, name_or_path, revision, dtype, trust_remote_code, extra)
        if resized is not None:
            _resize(model, resized, seed=seed)
        if quantization_config is None:
            model = model.to(device)
        kind = compute_dtype or model.dtype
        set_implementation(model, resolve_implementation(attn_implementation, model=model, device=device, dtype=kind))
        _refuse_encoder(model)
    _carry_stop_tokens(model, token_ids or {})
    return model.train()


def meta_model(
    *,
    name_or_path: str | None,
    init: Init = "pretrained",
    revision: str = "main",
    architecture: Mapping[str, Any] | None = None,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    vocab_size: int | None = None,
    token_ids: Mapping[str, int | None] | None = None,
) -> PreTrainedModel:
    """All of `load_model` that needs no weights: config, presence of weights, the model on the meta device."""
    config = _config(
        name_or_path=name_or_path,
        init=init,
        revision=revision,
        architecture=architecture,
        trust_remote_code=trust_remote_code,
        vocab_size=vocab_size,
        token_ids=token_ids,
    )
    if init == "pretrained" and name_or_path is not None:
        _refuse_without_weights(name_or_path, quantised=_is_quantised(config))
    return build_meta(config, trust_remote_code=trust_remote_code, dtype=_dtype(dtype, config))


def build_meta(
    config: PreTrainedConfig, *, trust_remote_code: bool = False, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """The model without weights: shapes, dtypes and names only."""
    with quiet_transformers(), _build_errors(), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code, dtype=dtype)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no warnings of Transformers on the terminal; what matters in them is checked here."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _config(**settings: Any) -> PreTrainedConfig:
    with quiet_transformers():
        return build_config(**settings)


def _is_quantised(config: PreTrainedConfig) -> bool:
    return getattr(config, "quantization_config", None) is not None  # a foreign object: only quantised ones have it


def _dtype(dtype: str, config: PreTrainedConfig) -> torch.dtype:
    if dtype != "auto":
        return DTYPES[dtype]
    kept = config.dtype or config.get_text_config().dtype or torch.float32
    return getattr(torch, kept) if isinstance(kept, str) else kept


def _random(config: PreTrainedConfig, *, dtype: str, trust_remote_code: bool, seed: int) -> PreTrainedModel:
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices), _build_errors():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code, dtype=torch.float32)
    return model.to(_dtype(dtype, config))


def _pretrained(
    config: PreTrainedConfig,
    name_or_path: str,
    revision: str,
    dtype: str,
    trust_remote_code: bool,
    extra: dict[str, Any],
) -> PreTrainedModel:
    options = {"use_safetensors": True, "revision": revision, "dtype": DTYPES.get(dtype, "auto"), **extra}
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            locate(name_or_path),
            config=config,
            trust_remote_code=trust_remote_code,
            local_files_only=cache_only() and not is_local(name_or_path),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `_refuse_not_filled` names them
            **options,
        )
    except OSError as error:
        raise ModelError(_weights_problem(error, name_or_path, revision)) from None
    except (RuntimeError, ValueError, KeyError, TypeError, ImportError) as error:
        message = f"the weights of {name_or_path} cannot be loaded: {_first_line(error)}"
        raise ModelError(
            Problem(NAME, message, help="check that config.json and the weights belong together")
        ) from None
    _refuse_not_filled(info, name_or_path, model.state_dict())
    return model


def _refuse_not_filled(info: Mapping[str, Any], name_or_path: str, expected: Iterable[str]) -> None:
    """Weights that the checkpoint lacks would be random numbers, and layers that the model lacks would be lost."""
    numbered = {re.sub(r"\d+", "#", name) for name in expected if any(map(str.isdigit, name))}
    layers = sorted(name for name in info["unexpected_keys"] if re.sub(r"\d+", "#", name) in numbered)
    missing = sorted(info["missing_keys"])
    wrong = sorted(str(item[0]) for item in info["mismatched_keys"])
    for names, reason in (
        (missing, "lacks {} of the model's weights"),
        (wrong, "has another shape for {} of the model's weights"),
        (layers, "has {} weights of layers that the model does not have"),
    ):
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            message = f"{name_or_path} {reason.format(len(names))}: {shown}"
            help = "check that config.json (and model.architecture) describe these weights"
            raise ModelError(Problem(NAME, message, help=help))


def _refuse_without_weights(name_or_path: str, *, quantised: bool) -> None:
    """A local folder must hold whole safetensors weights; the hub is asked when they are read."""
    if not is_local(name_or_path):
        return
    folder = Path(locate(name_or_path))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = _shards(index, name_or_path)
    elif (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    else:
        raise ModelError(_no_weights(folder, name_or_path))
    for file in files:
        _refuse_broken(file, name_or_path, quantised=quantised)


def _shards(index: Path, name_or_path: str) -> list[Path]:
    try:
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ModelError(Problem(NAME, f"{index} is not an index of weights", help="fetch the model again")) from None
    absent = [shard for shard in shards if not (index.parent / shard).is_file()]
    if absent:
        message = f"{name_or_path} lacks {len(absent)} of {len(shards)} weight files: {', '.join(absent[:3])}"
        raise ModelError(Problem(NAME, message, help="fetch the model again"))
    return [index.parent / shard for shard in shards]


def _no_weights(folder: Path, name_or_path: str) -> Problem:
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickled:
        message = f"{name_or_path} has pickled weights only ({pickled[0]}), which can run code when they are read"
        return Problem(NAME, message, help="convert them to model.safetensors, or get the model in that form")
    message = f"{name_or_path} has no weights: neither model.safetensors nor model.safetensors.index.json"
    help = 'add them, or set model.init = "random" to start from random weights of this architecture'
    return Problem(NAME, message, help=help)


def _refuse_broken(file: Path, name_or_path: str, *, quantised: bool) -> None:
    """Reads the header, which says how long the file is and of what its tensors are: milliseconds, no weights."""
    try:
        with safe_open(file, framework="pt") as stored:
            kinds = {name: str(stored.get_slice(name).get_dtype()) for name in stored.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        message = f"{name_or_path}/{file.name} is broken: {_first_line(error).partition(': ')[2]}"
        raise ModelError(Problem(NAME, message, help="fetch the model again")) from None
    wrong = {name: kind for name, kind in kinds.items() if not kind.startswith(("F", "BF")) and not _is_counter(name)}
    if wrong and not quantised:
        name, kind = next(iter(wrong.items()))
        message = f"{name_or_path} has weights of {kind}, which cannot be trained: {name}"
        raise ModelError(Problem(NAME, message, help="get the model in bf16 or float32"))


def _is_counter(name: str) -> bool:
    """Buffers that old checkpoints carry: GPT-2's causal masks (`attn.bias`), positions, token counts."""
    return name.rpartition(".")[2] in ("bias", "position_ids", "masked_bias") or "num_batches" in name


def _weights_problem(error: OSError, name_or_path: str, revision: str) -> Problem:
    if "safetensors" in str(error) and not cache_only():
        message = f"{name_or_path} has no safetensors weights"
        return Problem(NAME, message, help="get the model in that form: pickled weights can run code when read")
    return hub_problem(error, name_or_path, revision)


def _set_aside_vocabulary(
    config: PreTrainedConfig,
    name_or_path: str | None,
    revision: str,
    init: Init,
    architecture: Mapping[str, Any] | None,
) -> int | None:
    """A vocabulary set by hand on a pretrained model means: read the checkpoint's rows, then add to them."""
    if init == "random" or name_or_path is None or "vocab_size" not in (architecture or {}):
        return None
    text = config.get_text_config()
    wanted: int = text.vocab_size
    others = {key: value for key, value in (architecture or {}).items() if key != "vocab_size"}
    kept = _config(name_or_path=name_or_path, init=init, revision=revision, architecture=others)
    rows: int = kept.get_text_config().vocab_size
    if wanted < rows:
        message = f"{wanted} is less than the {rows} rows that the checkpoint has"
        raise ModelError(Problem("model.architecture.vocab_size", message, help=f"use {rows} or more"))
    text.vocab_size = rows
    return wanted


def _resize(model: PreTrainedModel, rows: int, *, seed: int) -> None:
    """Add rows to embedding and head, each the mean of the old ones: a new token starts as no token in particular."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        old = model.get_input_embeddings().weight.shape[0]
        model.resize_token_embeddings(rows, mean_resizing=False)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        if isinstance(module, nn.Module) and isinstance(module.weight, nn.Parameter):
            with torch.no_grad():
                module.weight[old:] = module.weight[:old].mean(0)
    refuse_small_vocabulary(model.config, rows, resizable=True)


def _refuse_encoder(model: PreTrainedModel) -> None:
    """BERT and its kin are causal only when told to be decoders; their config says so, GPT-NeoX's says so wrongly."""
    if getattr(model.config, "is_decoder", None) is False and looks_ahead(model):
        message = f"a {model.config.model_type} model sees later tokens: it would learn to copy them"
        raise ModelError(Problem("model.architecture.is_decoder", message, help="set it to true, or use another model"))


def _carry_stop_tokens(model: PreTrainedModel, token_ids: Mapping[str, int | None]) -> None:
    """The generation config that `final/` will hold stops at the tokenizer's end too, and keeps what it had."""
    if model.generation_config is None:
        model.generation_config = GenerationConfig.from_model_config(model.config)
    generation = model.generation_config
    end = token_ids.get("eos_token_id")
    if end is not None:
        had = generation.eos_token_id
        stops = [had] if isinstance(had, int) else list(had or [])
        if end not in stops:
            stops.append(end)
        generation.eos_token_id = stops if len(stops) > 1 else stops[0]
    for name in ("bos_token_id", "pad_token_id"):
        if getattr(generation, name) is None and token_ids.get(name) is not None:
            setattr(generation, name, token_ids[name])


@contextmanager
def _build_errors() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, AssertionError, ImportError) as error:
        message = f"the architecture cannot be built: {_first_line(error)}"
        raise ModelError(Problem("model.architecture", message, help="check its sizes against a known model")) from None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
