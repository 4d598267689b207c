"""Low-rank adapters by peft: LoRA, rsLoRA and DoRA, put into a loaded model in place.

The base is frozen and only the adapter trains, so gradients, master weights, optimiser states and checkpoints are
the adapter's alone, and the fused head makes no gradient of a head that does not train. Everything else of the
engine works on the base model as before: its layers carry the adapter in themselves, and the wrapper that peft
gives is needed only to save.

What peft lets pass is refused here, on the meta device, before any weight loads: a target that matches nothing
beside one that does is ignored by peft, and a row that is added to a frozen embedding never trains.
"""

from __future__ import annotations

import hashlib
import importlib.util
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sftctl.errors import ModelError, Problem

ADAPTABLE = (nn.Linear, Conv1D, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)
"""The kinds of module that peft has a LoRA layer for (quantised ones are linear layers by inheritance)."""

_SHOWN = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """What to adapt and how. `target_modules` none: all linear layers of the backbone."""

    r: int = 16
    alpha: float = 32
    dropout: float = 0.0
    target_modules: tuple[str, ...] | None = None
    target_parameters: tuple[str, ...] | None = None
    modules_to_save: tuple[str, ...] | None = None
    use_rslora: bool = False
    use_dora: bool = False


def check_adapter(model: Any, adapter: Adapter, *, resized: bool = False) -> None:
    """All that can be said without weights: `model` may be on the meta device. Raises ModelError, all of it at once.

    `resized`: the vocabulary got new rows, which only a trained embedding can learn.
    """
    _refuse_without_peft()
    problems = [
        *_module_problems(model, adapter),
        *_parameter_problems(model, adapter),
        *_saved_problems(model, adapter),
    ]
    embedding = _name_of(model, model.get_input_embeddings())
    if resized and not _matches(embedding, adapter.modules_to_save or ()):
        leaf = embedding.rpartition(".")[2]
        message = f"new rows of {embedding} would stay as they are: the adapter does not train them"
        help = f'set peft.lora_modules_to_save = ["{leaf}"], with the output layer if it is not tied to it'
        problems.append(Problem("model.architecture.vocab_size", message, help=help))
    if problems:
        raise ModelError(*problems)


def add_adapter(
    model: Any, adapter: Adapter, *, revision: str | None = None, seed: int = 42, on_meta: bool = False
) -> Any:
    """Put `adapter` into `model`, freeze the rest, and return peft's wrapper, whose `save_pretrained` saves it.

    New weights follow from `seed` alone and are float32. `revision` is the base's, for whoever loads the adapter.
    `on_meta` makes shapes without numbers. Raises ModelError for what `check_adapter` could not see.
    """
    _refuse_without_peft()
    from peft import LoraConfig, get_peft_model  # optional, and a second to import

    tied = _is_tied(model) and _touches_embedding(adapter)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.r,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules="all-linear" if adapter.target_modules is None else list(adapter.target_modules),
        target_parameters=_as_list(adapter.target_parameters),
        modules_to_save=_as_list(adapter.modules_to_save),
        use_rslora=adapter.use_rslora,
        use_dora=adapter.use_dora,
        revision=revision,
        **({"ensure_weight_tying": True} if tied else {}),
    )
    training = model.training
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        try:
            with warnings.catch_warnings():  # peft asks for what Transformers has renamed
                warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
                wrapped = get_peft_model(model, config, low_cpu_mem_usage=on_meta)
        except (ValueError, TypeError, NotImplementedError) as error:
            message = f"peft cannot adapt this {type(model).__name__}: {str(error).splitlines()[0]}"
            raise ModelError(Problem("peft", message, help="change peft.lora_target_modules")) from error
    wrapped.train(training)
    return wrapped


def base_digest(model: nn.Module, *, values_each: int = 256) -> str:
    """Tells one frozen base from another: names, shapes and the first values of what does not train, hashed.

    A checkpoint of an adapter does not hold its base, and a Hub branch may move between two runs.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if not parameter.requires_grad:
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            digest.update(_first_bytes(parameter, values_each))
    return digest.hexdigest()


def _first_bytes(tensor: Tensor, count: int) -> bytes:
    head = tensor.detach().reshape(-1)[:count].to("cpu")
    return bytes((head.to(torch.bfloat16) if head.is_floating_point() else head).view(torch.uint8).numpy())


def _refuse_without_peft() -> None:
    if importlib.util.find_spec("peft") is None:
        message = "adapters need peft, which is not installed"
        raise ModelError(Problem("peft.use_peft", message, help="pip install 'sftctl[peft]'"))


# ---------------------------------------------------------------------- names


def _module_problems(model: Any, adapter: Adapter) -> Iterator[Problem]:
    modules = dict(model.named_modules())
    for index, target in enumerate(adapter.target_modules or ()):
        found = {name: module for name, module in modules.items() if _matches(name, (target,))}
        path = f"peft.lora_target_modules[{index}]"
        help = f"there are {_listed(_leaf_names(modules, ADAPTABLE))}"
        if not found:
            yield Problem(path, f"this {type(model).__name__} has no module {target!r}", help=help)
        elif other := next((m for m in found.values() if not isinstance(m, ADAPTABLE)), None):
            message = f"{target!r} is a {type(other).__name__}, and an adapter goes into single layers"
            yield Problem(path, message, help=help)


def _parameter_problems(model: Any, adapter: Adapter) -> Iterator[Problem]:
    parameters = dict(model.named_parameters())
    known = sorted(
        {
            f"{module.rpartition('.')[2]}.{name}" if module else name
            for module, owner in model.named_modules()
            if not isinstance(owner, ADAPTABLE)
            for name, parameter in owner.named_parameters(recurse=False)
            if parameter.ndim in (2, 3)
        }
    )
    help = f"there are {_listed(known)}" if known else "all matrices of this model are modules: lora_target_modules"
    for index, target in enumerate(adapter.target_parameters or ()):
        dimensions = [parameter.ndim for name, parameter in parameters.items() if _matches(name, (target,))]
        path = f"peft.lora_target_parameters[{index}]"
        if not dimensions:
            yield Problem(path, f"this {type(model).__name__} has no parameter {target!r}", help=help)
        elif other := next((number for number in dimensions if number not in (2, 3)), None):
            message = f"{target!r} has {other} dimension(s), and an adapter is made for 2 or 3"
            yield Problem(path, message, help=help)


def _saved_problems(model: Any, adapter: Adapter) -> Iterator[Problem]:
    modules = dict(model.named_modules())
    for index, target in enumerate(adapter.modules_to_save or ()):
        if not any(_matches(name, (target,)) for name in modules):
            message = f"this {type(model).__name__} has no module {target!r}"
            help = f"there are {_listed(_leaf_names(modules, nn.Module, with_own_parameters=True))}"
            yield Problem(f"peft.lora_modules_to_save[{index}]", message, help=help)


def _matches(name: str, targets: Iterable[str]) -> bool:
    """As peft matches names in a list: the whole name, or its end after a dot."""
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _leaf_names(
    modules: dict[str, nn.Module],
    kind: type[nn.Module] | tuple[type[nn.Module], ...],
    *,
    with_own_parameters: bool = False,
) -> list[str]:
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in modules.items()
            if isinstance(module, kind) and name.rpartition(".")[2]
            if not with_own_parameters or next(module.parameters(recurse=False), None) is not None
        }
    )


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest


def _name_of(model: nn.Module, wanted: Any) -> str:
    return next((name for name, module in model.named_modules() if module is wanted), "embed_tokens")


def _is_tied(model: Any) -> bool:
    output, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return output is not None and output.weight is embedding.weight


def _touches_embedding(adapter: Adapter) -> bool:
    """By the two names that peft knows tied layers by."""
    named = (*(adapter.target_modules or ()), *(adapter.modules_to_save or ()))
    return any(name.rpartition(".")[2] in ("embed_tokens", "lm_head") for name in named)


def _as_list(names: tuple[str, ...] | None) -> list[str] | None:
    return None if names is None else list(names)
