"""Rules across leaves: what contradicts, and what has no effect. Pure: facts -> problems.

A contradiction is an error with both origins. A setting without effect is an error where it is a slip: someone
set it, and nobody with as much say set the switch that it needs. Where the switch was turned off by a source of
the same or a higher priority (an ablation's `--no-use-peft` over a file's `lora_r`, a sweep, a saved
configuration, which names every leaf), the setting idles on purpose, and a note says so. Sizes and intervals of
something that is absent (`per_device_eval_batch_size` without rows to evaluate on) are notes always: a shared
base file would be useless otherwise. A value equal to the default is never reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import attrs

from sftctl.config import paths
from sftctl.config.leaves import leaves
from sftctl.config.schema import Bundle
from sftctl.config.secrets import mask
from sftctl.config.sources.items import Item, origin_at
from sftctl.config.values import show_value
from sftctl.errors import Origin, Problem


@attrs.frozen(eq=False)
class Facts:
    """A bundle, and who said what. A leaf that nobody set has no entry in `items` and `ranks`."""

    bundle: Bundle
    items: Mapping[str, Item]
    ranks: Mapping[str, int]

    def value(self, path: str) -> Any:
        group, _, name = path.partition(".")
        return getattr(getattr(self.bundle, group), name)

    def origin(self, path: str, *inside: str | int) -> Origin:
        if path not in self.items:
            return Origin("default")
        return origin_at(self.items[path], inside)

    def is_set(self, path: str) -> bool:
        return path in self.ranks and self.value(path) != leaves()[path].default

    def later(self, first: str, second: str) -> tuple[str, str]:
        """The two paths, the one with more say first: it is the one to complain about."""
        ranked = self.ranks.get(first, -1) >= self.ranks.get(second, -1)
        return (first, second) if ranked else (second, first)


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


def _both(facts: Facts, first: str, second: str, message: str, help: str) -> Problem:
    path, other = facts.later(first, second)
    return Problem(path, message.format(other=other), facts.origin(path), help, (facts.origin(other),))


def _quantised(facts: Facts) -> Iterator[Problem]:
    peft = facts.bundle.peft
    if peft.load_in_8bit and peft.load_in_4bit:
        yield _both(facts, "peft.load_in_8bit", "peft.load_in_4bit", "contradicts {other}", "choose 8 bits or 4")
    for path in ("peft.load_in_8bit", "peft.load_in_4bit"):
        if facts.value(path) and not peft.use_peft:
            message = "quantised weights cannot be trained, only an adapter on them: it needs peft.use_peft"
            related = (facts.origin("peft.use_peft"),)
            yield Problem(path, message, facts.origin(path), "set peft.use_peft = true", related)


def _adapter(facts: Facts) -> Iterator[Problem]:
    bundle = facts.bundle
    peft = bundle.peft
    if not peft.use_peft:
        return
    if bundle.model.init == "random":
        message = "an adapter is nothing without its base, and {other} makes one that is not kept"
        help = 'name a model and set model.init = "pretrained", or train all weights'
        yield _both(facts, "peft.use_peft", "model.init", message, help)
    if peft.lora_target_parameters:
        origin = (facts.origin("peft.lora_target_parameters"),)
        if peft.lora_dropout:
            message = f"{peft.lora_dropout} cannot go before an adapted parameter: there is no module to put it into"
            place = facts.origin("peft.lora_dropout")
            yield Problem("peft.lora_dropout", message, place, "set peft.lora_dropout = 0", origin)
        if peft.use_dora:
            message = "adapts modules only, and peft.lora_target_parameters names parameters"
            yield Problem("peft.use_dora", message, facts.origin("peft.use_dora"), "leave one of them out", origin)


def _architecture(facts: Facts) -> Iterator[Problem]:
    model = facts.bundle.model
    if (
        model.init == "random"
        and model.name_or_path is None
        and model.architecture
        and "model_type" not in model.architecture
    ):
        advice = 'add model_type = "llama", or name a model whose config to start from'
        yield Problem("model.architecture", "has no model_type", facts.origin("model.architecture"), advice)


def _best_metric(facts: Facts) -> Iterator[Problem]:
    metric = facts.bundle.eval.metric_for_best_model
    if metric in ("eval_exact_match", "eval_stopped") and facts.bundle.eval.generate_samples == 0:
        advice = "set eval.generate_samples to how many rows to answer"
        origin = facts.origin("eval.metric_for_best_model")
        message = f"{metric} is measured on generated answers, and eval.generate_samples is 0"
        yield Problem("eval.metric_for_best_model", message, origin, advice, (facts.origin("eval.generate_samples"),))


def _machines(facts: Facts) -> Iterator[Problem]:
    spread = facts.bundle.distributed
    if spread.node_rank >= spread.nnodes:
        message = f"{spread.node_rank} is no machine of {spread.nnodes}: they count from 0"
        path, other = facts.later("distributed.node_rank", "distributed.nnodes")
        advice = "set distributed.nnodes to the number of machines"
        yield Problem("distributed.node_rank", message, facts.origin(path), advice, (facts.origin(other),))
    if spread.nnodes > 1 and spread.rdzv_endpoint is None:
        advice = "set distributed.rdzv_endpoint to host:port of one machine, the same on all"
        yield Problem(
            "distributed.nnodes", "several machines need a place to meet", facts.origin("distributed.nnodes"), advice
        )
    for path in ("distributed.nproc_per_node", "distributed.nnodes"):
        if spread.strategy == "none" and facts.value(path) > 1:
            yield _both(
                facts, "distributed.strategy", path, "contradicts {other}: none is one process", "use fsdp or ddp"
            )
    if (spread.nproc_per_node * spread.nnodes) % spread.hsdp_replicas:
        message = f"{spread.hsdp_replicas} replicas do not divide {spread.nproc_per_node * spread.nnodes} processes"
        yield Problem("distributed.hsdp_replicas", message, facts.origin("distributed.hsdp_replicas"), "use a divisor")


def _shares(facts: Facts) -> Iterator[Problem]:
    """Shares of a mixture: of every source, or of none."""
    sources = facts.bundle.data.datasets
    missing = [index for index, source in enumerate(sources) if source.fraction is None]
    if missing and len(missing) < len(sources):
        index = missing[0]
        given = next(number for number, source in enumerate(sources) if source.fraction is not None)
        related = (facts.origin("data.datasets", given, "fraction"),)
        place = f"data.datasets[{index}]"
        message = "has no fraction, and another entry has one: all have a share of the mixture, or none"
        yield Problem(place, message, facts.origin("data.datasets", index), "add fraction to it", related)


def _streamed(facts: Facts) -> Iterator[Problem]:
    """What needs the number of rows cannot be had of a stream."""
    bundle = facts.bundle
    if not bundle.data.streaming:
        return
    related = (facts.origin("data.streaming"),)
    if bundle.train.max_steps is None:
        message = "a stream has no known end, and train.max_steps is not set"
        advice = "say how many steps to train: --max-steps N"
        yield Problem("data.streaming", message, facts.origin("data.streaming"), advice)
    if bundle.data.test_split_size is not None:
        message = "a share of a stream cannot be held out: it needs data.streaming = false"
        advice = "name rows to evaluate on with data.eval_datasets"
        yield Problem("data.test_split_size", message, facts.origin("data.test_split_size"), advice, related)
    for index, source in enumerate(bundle.data.datasets):
        if source.fraction is not None and bundle.data.mixing == "concat":
            message = "shares follow from the number of rows, which a stream does not know"
            advice = 'set data.mixing = "interleave" and a weight, or data.streaming = false'
            origin = facts.origin("data.datasets", index, "fraction")
            yield Problem(f"data.datasets[{index}].fraction", message, origin, advice, related)


class Conflict(NamedTuple):
    """A rule about leaves that contradict: which, in words for `explain`, and its check."""

    paths: tuple[str, ...]
    text: str
    check: Callable[[Facts], Iterator[Problem]]


CONFLICTS: tuple[Conflict, ...] = (
    Conflict(
        ("peft.load_in_8bit", "peft.load_in_4bit", "peft.use_peft"),
        "base weights load in 8 or in 4 bits, not both, and need peft.use_peft",
        _quantised,
    ),
    Conflict(
        ("peft.use_peft", "model.init", "peft.lora_target_parameters", "peft.lora_dropout", "peft.use_dora"),
        'an adapter needs init = "pretrained"; lora_target_parameters go with lora_dropout = 0 and without use_dora',
        _adapter,
    ),
    Conflict(
        ("model.architecture", "model.init", "model.name_or_path"),
        'init = "random" without name_or_path needs model_type in architecture',
        _architecture,
    ),
    Conflict(
        ("eval.metric_for_best_model", "eval.generate_samples"),
        "eval_exact_match and eval_stopped need generate_samples above 0",
        _best_metric,
    ),
    Conflict(
        (
            "distributed.strategy",
            "distributed.nproc_per_node",
            "distributed.nnodes",
            "distributed.node_rank",
            "distributed.rdzv_endpoint",
            "distributed.hsdp_replicas",
        ),
        "node_rank counts from 0 below nnodes; several machines need rdzv_endpoint; strategy none is one process; "
        "hsdp_replicas divides the processes",
        _machines,
    ),
    Conflict(("data.datasets",), "every entry has a fraction, or none has", _shares),
    Conflict(
        ("data.streaming", "train.max_steps", "data.test_split_size", "data.datasets"),
        "a stream needs max_steps, and has no test_split_size and no fraction",
        _streamed,
    ),
)


def related(path: str) -> tuple[str, ...]:
    """The rules that a leaf takes part in, in words."""
    found = [rule.text for rule in CONFLICTS if path in rule.paths]
    for rule in INERT:
        if path in rule.paths:
            found.append(f"has no effect without {rule.wanted}")
        elif path == rule.switch:
            verb = "needs" if len(rule.paths) == 1 else "need"
            found.append(f"{', '.join(rule.paths)} {verb} {rule.wanted}")
    return tuple(found)


def idle_switches(bundle: Bundle, changed: frozenset[str]) -> frozenset[str]:
    """The switches that are off while one of their leaves is among the `changed`.

    A file that says only what differs from the defaults must say these too: it is on purpose that they are off.
    """
    off = {rule.switch for rule in INERT if not rule.is_on(bundle) and changed.intersection(rule.paths)}
    return frozenset(off | ({"data.mixing"} if "data.datasets" in changed else set()))
