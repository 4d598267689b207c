"""Rules across leaves: what contradicts, and what has no effect. Pure: facts -> problems.

A contradiction is an error with both origins. A setting without effect is an error where it is a slip: someone
set it, and nobody with as much say set the switch that it needs. Where the switch was turned off by a source of
the same or a higher priority (an ablation's `--no-use-peft` over a file's `lora_r`, a sweep, a saved
configuration, which names every leaf), the setting idles on purpose, and a note says so. Sizes and intervals of
something that is absent (`per_device_eval_batch_size` without rows to evaluate on) are notes always: a shared
base file would be useless otherwise. A value equal to the default is never reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from sftctl.config import paths
from sftctl.config.conflicts import CONFLICTS
from sftctl.config.facts import Facts
from sftctl.config.schema import Bundle
from sftctl.config.secrets import mask
from sftctl.config.values import show_value
from sftctl.errors import Origin, Problem


class Inert(NamedTuple):
    """Leaves that do nothing unless something is on.

    `is_on` asks the bundle, `switch` is the leaf that decides, `wanted` how to turn it on. `idle` is what an
    idle leaf is where nobody set the switch: an error, or a note.
    """

    paths: tuple[str, ...]
    is_on: Callable[[Bundle], bool]
    switch: str
    wanted: str
    idle: Literal["error", "note"] = "error"


def _evaluates(bundle: Bundle) -> bool:
    return bool(bundle.data.eval_datasets) or bundle.data.test_split_size is not None


def _shards(bundle: Bundle) -> bool:
    many = bundle.distributed.nproc_per_node * bundle.distributed.nnodes > 1
    return bundle.distributed.strategy == "fsdp" or (bundle.distributed.strategy == "auto" and many)


_LORA = tuple(f"peft.{name}" for name in (
    "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_parameters",
    "lora_modules_to_save", "use_rslora", "use_dora",
))  # fmt: skip
_NO_END = ("constant", "constant_with_warmup", "inverse_sqrt")

INERT: tuple[Inert, ...] = (
    Inert(
        ("sft.packing_strategy",),
        lambda b: b.sft.packing or bool(b.sft.eval_packing),
        "sft.packing",
        "sft.packing = true",
    ),
    Inert(
        ("sft.truncation_mode",),
        lambda b: not b.sft.packing or b.sft.packing_strategy == "bfd",
        "sft.packing_strategy",
        'sft.packing_strategy = "bfd"; the others cut no row short',
    ),
    Inert(
        ("sft.last_turn_only_loss",),
        lambda b: b.sft.assistant_only_loss or b.sft.completion_only_loss is True,
        "sft.assistant_only_loss",
        "sft.assistant_only_loss = true",
    ),
    Inert(_LORA, lambda b: b.peft.use_peft, "peft.use_peft", "peft.use_peft = true"),
    Inert(
        ("peft.bnb_4bit_quant_type", "peft.use_bnb_nested_quant", "peft.bnb_4bit_quant_storage"),
        lambda b: b.peft.load_in_4bit,
        "peft.load_in_4bit",
        "peft.load_in_4bit = true",
    ),
    Inert(
        ("model.model_init_kwargs",), lambda b: b.model.init == "pretrained", "model.init", 'model.init = "pretrained"'
    ),
    Inert(
        ("model.revision",),
        lambda b: not paths.must_be_local(b.model.name_or_path or ""),
        "model.name_or_path",
        "a Hub id as model.name_or_path",
        idle="note",
    ),
    Inert(
        ("data.stopping_strategy",),
        lambda b: b.data.mixing == "interleave",
        "data.mixing",
        'data.mixing = "interleave"',
    ),
    Inert(("train.num_train_epochs",), lambda b: b.train.max_steps is None, "train.max_steps", "train.max_steps unset"),
    Inert(
        ("optim.warmup_steps",),
        lambda b: b.optim.lr_scheduler_type != "constant",
        "optim.lr_scheduler_type",
        'an optim.lr_scheduler_type other than "constant"',
    ),
    Inert(
        ("optim.min_lr_ratio",),
        lambda b: b.optim.lr_scheduler_type not in _NO_END,
        "optim.lr_scheduler_type",
        'an optim.lr_scheduler_type that falls, such as "cosine"',
    ),
    Inert(
        ("optim.betas",),
        lambda b: b.optim.optimizer in ("adamw", "adamw_8bit", "muon"),
        "optim.optimizer",
        'an optim.optimizer with moments, such as "adamw"',
    ),
    Inert(
        ("optim.epsilon",),
        lambda b: b.optim.optimizer != "sgd",
        "optim.optimizer",
        'an optim.optimizer other than "sgd"',
    ),
    Inert(
        ("eval.generate_samples", "eval.eval_on_start", "eval.early_stopping_patience", "eval.load_best_model_at_end"),
        _evaluates,
        "data.eval_datasets",
        "rows to evaluate on: data.eval_datasets or data.test_split_size",
    ),
    Inert(
        ("eval.eval_steps", "eval.per_device_eval_batch_size", "eval.eval_samples", "sft.eval_packing"),
        _evaluates,
        "data.eval_datasets",
        "rows to evaluate on: data.eval_datasets or data.test_split_size",
        idle="note",
    ),
    Inert(
        ("eval.max_new_tokens",),
        lambda b: b.eval.generate_samples > 0,
        "eval.generate_samples",
        "eval.generate_samples above 0",
        idle="note",
    ),
    Inert(
        ("log.project",), lambda b: bool(b.log.report_to), "log.report_to", "a tracker in log.report_to", idle="note"
    ),
    Inert(
        ("distributed.hsdp_replicas", "distributed.fsdp_cpu_offload", "distributed.reshard_after_forward"),
        _shards,
        "distributed.strategy",
        'distributed.strategy = "fsdp"',
    ),
)


def check(facts: Facts) -> tuple[list[Problem], list[Problem]]:
    """(errors, notes) of every rule."""
    errors = [problem for rule in CONFLICTS for problem in rule.check(facts)]
    notes: list[Problem] = []
    for rule in INERT:
        if rule.is_on(facts.bundle):
            continue
        for path in rule.paths:
            if facts.is_set(path):
                on_purpose = facts.ranks.get(rule.switch, -1) >= facts.ranks[path]
                (notes if on_purpose or rule.idle == "note" else errors).append(_inert(rule, path, facts))
    for problem, is_error in _idle_weights(facts):
        (errors if is_error else notes).append(problem)
    return errors, notes


def ready(facts: Facts) -> list[Problem]:
    """What is still missing to train: a model, rows, and the local files that are named."""
    bundle = facts.bundle
    found: list[Problem] = []
    if bundle.model.name_or_path is None and not (bundle.model.init == "random" and bundle.model.architecture):
        found.append(Problem("model.name_or_path", "no model is named", help="--model-name-or-path HUB_ID_OR_FOLDER"))
    if bundle.model.name_or_path is None and bundle.model.tokenizer is None and not found:
        found.append(
            Problem("model.tokenizer", "no tokenizer is named", help='model.tokenizer = "bytes" needs no files')
        )
    if not bundle.data.datasets:
        found.append(Problem("data.datasets", "there are no rows to train on", help="--dataset PATH"))
    for path in ("model.name_or_path", "model.tokenizer", "model.chat_template_path", "checkpoint.resume"):
        value = facts.value(path)
        if value is not None and paths.is_missing(value):
            found.append(_missing(path, value, facts.origin(path)))
    for path in ("data.datasets", "data.eval_datasets"):
        for index, source in enumerate(facts.value(path)):
            if paths.is_missing(source.path):
                place = f"{path}[{index}].path"
                found.append(_missing(place, source.path, facts.origin(path, index, "path")))
    return found


def _missing(path: str, value: str, origin: Origin) -> Problem:
    start = "the file that says it" if origin.kind in ("file", "recipe") else "the working directory"
    advice = f"check the path; a relative one starts from {start}"
    return Problem(path, f"there is no {paths.shorten(value)}", origin, advice)


def _inert(rule: Inert, path: str, facts: Facts) -> Problem:
    message = f"{show_value(mask(facts.value(path), path.split('.')))} has no effect: it needs {rule.wanted}"
    related = (facts.origin(rule.switch),) if rule.switch in facts.ranks else ()
    return Problem(path, message, facts.origin(path), f"set that, or remove {path}", related)


def _idle_weights(facts: Facts) -> Iterator[tuple[Problem, bool]]:
    """`weight` is for interleaving, `fraction` for joining."""
    interleaves = facts.bundle.data.mixing == "interleave"
    idle, wanted = ("fraction", "concat") if interleaves else ("weight", "interleave")
    on_purpose = facts.ranks.get("data.mixing", -1) >= facts.ranks.get("data.datasets", 0)
    for index, source in enumerate(facts.bundle.data.datasets):
        value = source.fraction if interleaves else source.weight
        if value is not None:
            message = f'{value} has no effect: it needs data.mixing = "{wanted}"'
            origin = facts.origin("data.datasets", index, idle)
            yield (
                Problem(f"data.datasets[{index}].{idle}", message, origin, f"set that, or remove {idle}"),
                not on_purpose,
            )


def related(path: str) -> tuple[str, ...]:
    """The rules that a leaf takes part in, in words."""
    found = [rule.text for rule in CONFLICTS if path in rule.paths]
    for rule in INERT:
        if path in rule.paths:
            found.append(f"has no effect without {rule.wanted}")
        elif path == rule.switch:
            found.append(_needs(rule))
    return tuple(found)


def texts() -> tuple[str, ...]:
    """All rules between leaves, in words: contradictions, then what has no effect alone."""
    return (*(rule.text for rule in CONFLICTS), *map(_needs, INERT))


def _needs(rule: Inert) -> str:
    return f"{', '.join(rule.paths)} {'needs' if len(rule.paths) == 1 else 'need'} {rule.wanted}"


def idle_switches(bundle: Bundle, changed: frozenset[str]) -> frozenset[str]:
    """The switches that are off while one of their leaves is among the `changed`.

    A file that says only what differs from the defaults must say these too: it is on purpose that they are off.
    """
    off = {rule.switch for rule in INERT if not rule.is_on(bundle) and changed.intersection(rule.paths)}
    return frozenset(off | ({"data.mixing"} if "data.datasets" in changed else set()))
