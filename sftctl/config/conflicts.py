"""What contradicts: each rule yields a problem with the origins of all leaves that it is about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from sftctl.config.facts import Facts
from sftctl.errors import Problem


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


def _prefix(facts: Facts) -> Iterator[Problem]:
    bundle = facts.bundle
    if not bundle.sft.share_prefix:
        return
    help = "leave sft.share_prefix out: prefixes are then shared wherever that is exact"
    if bundle.sft.padding_free is False:
        message = "contradicts {other}: only a flat batch keeps a prefix once"
        yield _both(facts, "sft.share_prefix", "sft.padding_free", message, help)
    if bundle.peft.use_peft and bundle.peft.lora_dropout:
        message = "contradicts {other}: each copy of a prefix draws random numbers of its own"
        yield _both(facts, "sft.share_prefix", "peft.lora_dropout", message, help)


def _held_out(facts: Facts) -> Iterator[Problem]:
    size = facts.bundle.data.test_split_size
    if size is not None and size > 1 and size != int(size):
        message = f"{size:g} rows cannot be held out: a share is below 1, a number of rows is whole"
        advice = f"set {int(size)}, or a share such as 0.1"
        yield Problem("data.test_split_size", message, facts.origin("data.test_split_size"), advice)


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
    Conflict(
        ("sft.share_prefix", "sft.padding_free", "peft.lora_dropout"),
        "share_prefix = true needs flat batches and no dropout",
        _prefix,
    ),
    Conflict(("data.test_split_size",), "test_split_size is a share below 1 or a whole number of rows", _held_out),
    Conflict(("data.datasets",), "every entry has a fraction, or none has", _shares),
    Conflict(
        ("data.streaming", "train.max_steps", "data.test_split_size", "data.datasets"),
        "a stream needs max_steps, and has no test_split_size and no fraction",
        _streamed,
    ),
)
