"""The model's config: read from a folder or the hub, or written by hand, and checked before anything heavy happens.

Every problem that can be seen without weights is found here, in well under a second, and names the field: an
unknown model_type or field with its near misses, a value of the wrong type, sizes that do not divide, a
vocabulary smaller than the tokenizer's. What Transformers' own checks let through (a key-value head count that
does not divide, an activation that does not exist) would otherwise fail minutes later inside a matrix product.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

# Deferred by Transformers itself: naming these loads no model code.
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sftctl.engine.model.hub import UNREACHABLE, UNREACHABLE_HELP, cache_only, is_local
from sftctl.errors import ModelError, Problem

ARCHITECTURE = "model.architecture"
NAME = "model.name_or_path"


def build_config(
    *,
    name_or_path: str | None,
    init: Literal["pretrained", "random"],
    revision: str = "main",
    architecture: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
    vocab_size: int | None = None,
    token_ids: Mapping[str, int | None] | None = None,
) -> PreTrainedConfig:
    """The config of the model to be made. `vocab_size` and `token_ids` are the tokenizer's.

    With pretrained weights the vocabulary of the checkpoint is kept; `architecture` overrides single fields. Without
    a name, `architecture` is the whole config, the vocabulary and the special tokens come from the tokenizer.
    """
    changes = dict(architecture or {})
    if name_or_path is None:
        config = _from_architecture(changes, init=init, vocab_size=vocab_size, token_ids=token_ids or {})
    else:
        config = _from_name(name_or_path, revision, changes, trust_remote_code=trust_remote_code)
        if init == "random" and vocab_size is not None and "vocab_size" not in changes:
            text = config.get_text_config()
            text.vocab_size = max(text.vocab_size, vocab_size)
    _refuse_sizes(config.get_text_config())
    refuse_small_vocabulary(config, vocab_size, resizable=init == "pretrained")
    return config


def refuse_small_vocabulary(config: PreTrainedConfig, vocab_size: int | None, *, resizable: bool) -> None:
    """A token id beyond the embedding would be an index error in the first batch that holds it."""
    rows = config.get_text_config().vocab_size
    if vocab_size is None or rows >= vocab_size:
        return
    help = (
        f"check that model.tokenizer belongs to this model; to add {vocab_size - rows} rows to its embedding, "
        f"set model.architecture.vocab_size = {vocab_size}"
        if resizable
        else f"set it to at least {vocab_size}, or leave it out"
    )
    problem = f"the tokenizer has {vocab_size} token ids and the model's embedding {rows} rows"
    raise ModelError(Problem("model.tokenizer" if resizable else f"{ARCHITECTURE}.vocab_size", problem, help=help))


def _from_architecture(
    changes: dict[str, Any],
    *,
    init: str,
    vocab_size: int | None,
    token_ids: Mapping[str, int | None],
) -> PreTrainedConfig:
    if init == "pretrained":
        help = 'name a Hub id or a folder, or set model.init = "random" and model.architecture'
        raise ModelError(Problem(NAME, "no model is named", help=help))
    model_type = changes.pop("model_type", None)
    if model_type is None:
        help = 'add model_type = "llama" (or another), or set model.name_or_path'
        raise ModelError(Problem(ARCHITECTURE, "model_type is missing", help=help))
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        path = f"{ARCHITECTURE}.model_type"
        raise ModelError(
            Problem(path, f"unknown model_type {model_type!r}", help=_near(str(model_type), _causal_types()))
        )
    config_class = CONFIG_MAPPING[model_type]
    _refuse_not_causal(config_class, model_type)
    _refuse_unknown_fields(config_class, changes, ARCHITECTURE)
    text_class = _text_class(config_class)
    defaults = {name: value for name, value in token_ids.items() if name in field_names(text_class)}
    if vocab_size is not None:
        defaults["vocab_size"] = vocab_size
    if text_class is not config_class:
        key = "text_config"
        changes[key] = {**defaults, **changes.get(key, {})}
    else:
        changes = {**defaults, **changes}
    with _said_as_problem():
        return config_class(**changes)


def _from_name(
    name_or_path: str, revision: str, changes: dict[str, Any], *, trust_remote_code: bool
) -> PreTrainedConfig:
    where = locate(name_or_path)
    options: dict[str, Any] = {"revision": revision, "local_files_only": cache_only() and not is_local(name_or_path)}
    with _said_as_problem(name_or_path, revision):
        config = AutoConfig.from_pretrained(where, trust_remote_code=trust_remote_code, **options)
    config_class = type(config)
    if config.model_type in CONFIG_MAPPING:
        _refuse_not_causal(config_class, config.model_type)
    if not changes:
        return config
    model_type = changes.pop("model_type", config.model_type)
    if model_type != config.model_type:
        message = f"{model_type!r} is not the {config.model_type!r} of {name_or_path}"
        raise ModelError(Problem(f"{ARCHITECTURE}.model_type", message, help="leave it out, or name another model"))
    _refuse_unknown_fields(config_class, changes, ARCHITECTURE)
    with _said_as_problem():
        # The file's own fields, not the built config's: those hold values derived from what is being changed.
        written, _ = PreTrainedConfig.get_config_dict(where, **options)
        return config_class.from_dict(_merged(written, changes))


def locate(name_or_path: str) -> str:
    """The folder, checked, or the Hub id as it is."""
    if not is_local(name_or_path):
        return name_or_path
    folder = Path(name_or_path).expanduser()
    if not folder.exists():
        raise ModelError(Problem(NAME, f"{name_or_path} does not exist", help="give a model folder or a Hub id"))
    if not folder.is_dir():
        help = f"give the folder that holds it: {folder.parent}"
        raise ModelError(Problem(NAME, f"{name_or_path} is a file, not a model folder", help=help))
    if not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        message = f"{name_or_path} has no config.json" + (": it holds an adapter, not a model" if adapter else "")
        help = (
            "merge it first with peft's merge_and_unload, or name its base model"
            if adapter
            else "give a folder in Hugging Face format: config.json, model.safetensors, and the tokenizer's files"
        )
        raise ModelError(Problem(NAME, message, help=help))
    return str(folder)


def field_names(config_class: type) -> set[str]:
    """Names that may be set on a config class: its fields, and the standard names that it maps to its own."""
    if dataclasses.is_dataclass(config_class):
        names = {field.name for field in dataclasses.fields(config_class)}
    else:  # custom code, and configs written before they were dataclasses
        names = {name for cls in config_class.__mro__ for name in inspect.signature(cls).parameters}
        names -= {"self", "args", "kwargs"}
    attribute_map: Mapping[str, str] = config_class.attribute_map  # type: ignore[attr-defined]
    return names | set(attribute_map) | _ALWAYS


# Read from **kwargs by Transformers: rotary settings in their older spelling, and layer-wise overrides.
_ALWAYS = {"rope_theta", "rope_scaling", "per_layer_config", "tie_word_embeddings", "pad_token_id", "name_or_path"}


@cache
def _read_by_code(config_class: type) -> frozenset[str]:
    """Names that a model's code reads from its config beyond the declared fields.

    Qwen3-MoE's `head_dim` and Gemma 3's older `sliding_window_pattern` are such: published configs have them.
    """
    source = Path(inspect.getfile(config_class))
    names: set[str] = set()
    for file in (source, source.with_name(source.name.replace("configuration_", "modeling_"))):
        if file.is_file():
            names |= {name for found in _READS.findall(file.read_text(encoding="utf-8")) for name in found}
    return frozenset(name for name in names if name and not name.startswith("_"))


_READS = re.compile(r"""config\.(\w+)|getattr\(\s*(?:self\.)?config,\s*"(\w+)"|kwargs\.(?:pop|get)\(\s*"(\w+)\"""")


def _refuse_unknown_fields(config_class: type, changes: Mapping[str, Any], path: str) -> None:
    problems = list(_unknown_fields(config_class, changes, path))
    if problems:
        raise ModelError(*problems)


def _unknown_fields(config_class: type, changes: Mapping[str, Any], path: str) -> Iterator[Problem]:
    known = field_names(config_class)
    parts = _parts(config_class)
    for name, value in changes.items():
        part = parts.get(name)
        if name not in known | _read_by_code(config_class):
            model_type = config_class.model_type  # type: ignore[attr-defined]
            nested = [key for key, part in parts.items() if name in field_names(part)]
            help = f"it belongs under {path}.{nested[0]}" if nested else _near(name, known)
            yield Problem(f"{path}.{name}", f"a {model_type} model has no field {name!r}", help=help)
        elif part is not None and isinstance(value, Mapping):
            yield from _unknown_fields(part, value, f"{path}.{name}")


def _refuse_not_causal(config_class: type, model_type: str) -> None:
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        help = _near(model_type, _causal_types()) or "take one that is, as a llama or qwen3 model"
        raise ModelError(Problem(ARCHITECTURE, f"{model_type!r} is not a causal language model", help=help))


def _refuse_sizes(text: PreTrainedConfig) -> None:
    """What would fail, or worse, not fail, inside the first forward pass."""
    fields = text.to_dict()
    problems = []
    heads, groups = fields.get("num_attention_heads"), fields.get("num_key_value_heads")
    hidden, head_dim = fields.get("hidden_size"), fields.get("head_dim")
    if isinstance(heads, int) and isinstance(groups, int) and groups > 0 and heads % groups:
        message = f"{heads} attention heads cannot share {groups} key-value heads evenly"
        help = f"use a divisor of {heads}: {', '.join(str(n) for n in range(1, heads + 1) if heads % n == 0)}"
        problems.append(Problem(f"{ARCHITECTURE}.num_key_value_heads", message, help=help))
    if isinstance(heads, int) and isinstance(hidden, int) and head_dim is None and heads > 0 and hidden % heads:
        message = f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}"
        problems.append(Problem(f"{ARCHITECTURE}.hidden_size", message, help=f"use {hidden // heads * heads or heads}"))
    if isinstance(head_dim, int) and head_dim % 2 and "rope_parameters" in fields:
        message = f"a head of {head_dim} dimensions cannot be rotated: rotary positions turn pairs"
        problems.append(Problem(f"{ARCHITECTURE}.head_dim", message, help="make hidden_size / heads an even number"))
    activation = fields.get("hidden_act") or fields.get("hidden_activation")
    if isinstance(activation, str) and activation not in ACT2FN:
        name = "hidden_act" if fields.get("hidden_act") else "hidden_activation"
        message = f"unknown activation {activation!r}"
        problems.append(Problem(f"{ARCHITECTURE}.{name}", message, help=_near(activation, set(ACT2FN))))
    if problems:
        raise ModelError(*problems)


@contextmanager
def _said_as_problem(name_or_path: str | None = None, revision: str = "main") -> Iterator[None]:
    """Transformers' and the hub's errors about a config, in one line each, with the place and what to do."""
    try:
        yield
    except OSError as error:
        assert name_or_path is not None
        raise ModelError(hub_problem(error, name_or_path, revision)) from None
    except Exception as error:  # strict dataclass errors, KeyError, ValueError, TypeError: all about values
        raise ModelError(_config_problem(error, name_or_path)) from None


def _config_problem(error: Exception, name_or_path: str | None) -> Problem:
    whole = str(error)
    lines = [line.strip() for line in whole.splitlines() if line.strip()] or [type(error).__name__]
    reason = lines[-1].partition("Error: ")[2] or lines[-1]
    if name_or_path is None:
        field = re.search(r"[Ff]ield '(\w+)'", whole)
        return Problem(f"{ARCHITECTURE}.{field[1]}" if field else ARCHITECTURE, reason)
    if "trust_remote_code" in whole:
        help = "set model.trust_remote_code = true if you trust its author"
        return Problem(NAME, f"{name_or_path} comes with Python code of its own", help=help)
    if "does not recognize this architecture" in whole or "model_type" in whole:
        message = f"{name_or_path}/config.json has no model_type that this version of transformers knows"
        return Problem(NAME, message, help="update transformers, or set model.trust_remote_code if it brings its code")
    return Problem(NAME, f"{name_or_path}/config.json: {reason}", help="fetch the model again, or correct the file")


def hub_problem(error: OSError, name_or_path: str, revision: str) -> Problem:
    """An id that could not be had from the hub: no network, no such model, no access, no such revision."""
    text = str(error)
    if is_local(name_or_path):
        return Problem(NAME, f"{name_or_path} cannot be read: {text.splitlines()[0]}")
    if "gated" in text or ("401" in text and "Repository Not Found" not in text):
        help = "ask for access on its page and log in with 'hf auth login'"
        return Problem(NAME, f"{name_or_path} is gated, and this machine has no access", help=help)
    if "not a valid git identifier" in text or "Revision" in text:
        return Problem("model.revision", f"{name_or_path} has no revision {revision!r}", help="see the model's page")
    if cache_only():
        return Problem(NAME, UNREACHABLE.format(name=name_or_path), help=UNREACHABLE_HELP)
    return Problem(NAME, f"{name_or_path} is not a folder here, and the Hub has no such model", help="check the name")


def _causal_types() -> set[str]:
    return set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _text_class(config_class: type) -> type:
    """The class that holds the language model's fields: the class itself, or its part (`text_config`)."""
    return _parts(config_class).get("text_config", config_class)


def _parts(config_class: type) -> dict[str, type]:
    """Config classes nested in this one, by field; a part that may be of any class (AutoConfig) is left unchecked."""
    parts: Mapping[str, Any] = config_class.sub_configs  # type: ignore[attr-defined]
    return {name: part for name, part in parts.items() if isinstance(part, type) and issubclass(part, PreTrainedConfig)}


def _merged(written: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(written)
    for name, value in changes.items():
        old = merged.get(name)
        merged[name] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _near(word: str, known: set[str]) -> str | None:
    close = difflib.get_close_matches(word, sorted(known), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(repr(name) for name in close)}?" if close else None
