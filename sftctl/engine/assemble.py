"""Configuration becomes objects here, and nowhere else: below this file there are only keyword arguments.

Bundle                 -> Inputs    tokenizer, rows with their masks, bins, plans; no weights yet
Bundle, Inputs, ranks  -> Machine   model, head, weights, optimiser, step, evaluation
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch

from sftctl.config.schema import Bundle
from sftctl.engine.assemble_model import load_model_of
from sftctl.engine.assemble_rows import eval_packing, splits_of
from sftctl.engine.data.collate import collate
from sftctl.engine.memory.allocator import keep_freed_memory
from sftctl.engine.memory.offloading import ActivationOffloading
from sftctl.engine.model.attention import IsolationReport, isolation_self_test
from sftctl.engine.model.checkpointing import set_gradient_checkpointing
from sftctl.engine.model.compiling import compile_blocks
from sftctl.engine.model.generation import greedy
from sftctl.engine.model.head import HeadReport, find_head, find_router, head_self_test
from sftctl.engine.model.sharing import random_rates, reason_against
from sftctl.engine.model.tokenizer import load_tokenizer
from sftctl.engine.ranks import distributed
from sftctl.engine.ranks.distributed import Ranks
from sftctl.engine.ranks.sharding import Sharded, resolve_strategy
from sftctl.engine.splits import Split
from sftctl.engine.training.evaluate import answers_of, evaluate_loss
from sftctl.engine.training.losses import LossSums
from sftctl.engine.training.optim import OPTIMIZERS, learning_rate_at, parameters_of
from sftctl.engine.training.precision import Weights, resolve_precision
from sftctl.engine.training.step import TrainStep, forward_loss
from sftctl.errors import ModelError, Problem
from sftctl.records import Answer, Batch


@dataclass(frozen=True, slots=True)
class Inputs:
    """All that is known before the weights."""

    tokenizer: Any
    train: Split
    evaluation: Split | None
    total_steps: int
    learning_rate_at: Callable[[int], float]

    @property
    def steps_per_epoch(self) -> int:
        return self.train.steps_per_epoch


@dataclass(frozen=True, slots=True)
class Machine:
    """The loaded model and all that works on it. `saved` is what `final/` is saved from, `base_digest` what an
    adapter's base is known by."""

    model: Any
    saved: Any
    base_digest: str | None
    weights: Weights
    optimizer: torch.optim.Optimizer
    step: TrainStep
    batches_at: Callable[[int, int], Sequence[Batch]]
    evaluate: Callable[[], dict[str, float]]
    answer: Callable[[], tuple[Answer, ...]]
    sharded: Sharded | None
    precision: str
    head_report: HeadReport
    isolation: IsolationReport
    shares_prefixes: bool


# ---------------------------------------------------------------------- before the weights


def ranks_of(bundle: Bundle) -> Ranks:
    """Join the other processes of the run. Raises ConfigError for fewer GPUs than processes."""
    ranks = distributed.start()
    if bundle.train.full_determinism:
        distributed.make_deterministic()
    return ranks


def tokenizer_of(bundle: Bundle) -> Any:
    model = bundle.model
    name = model.tokenizer or model.name_or_path
    if name is None:
        help = 'name one with model.tokenizer ("bytes" needs no file), or a model with model.name_or_path'
        raise ModelError(Problem("model.tokenizer", "there is no tokenizer to load", help=help))
    return load_tokenizer(
        name,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        chat_template=None if model.chat_template_path is None else _chat_template(Path(model.chat_template_path)),
        eos_token=model.eos_token,
        where="model.name_or_path" if model.tokenizer is None else "model.tokenizer",
    )


def _chat_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = f"{path} cannot be read: {error.strerror if isinstance(error, OSError) else error}"
        raise ModelError(Problem("model.chat_template_path", message, help="name a Jinja file")) from error


def inputs_of(bundle: Bundle, tokenizer: Any, *, world_size: int) -> Inputs:
    """Read, render, tokenise, mask, pack and plan. Raises DataError for all that is wrong with the rows."""
    train, optim = bundle.train, bundle.optim
    training, evaluation = splits_of(bundle, tokenizer, world_size=world_size)
    epochs_steps = math.ceil(train.num_train_epochs * training.steps_per_epoch)
    total_steps = train.max_steps if train.max_steps is not None else max(1, epochs_steps)
    return Inputs(
        tokenizer=tokenizer,
        train=training,
        evaluation=evaluation,
        total_steps=total_steps,
        learning_rate_at=partial(
            learning_rate_at,
            total_steps=total_steps,
            learning_rate=optim.learning_rate,
            lr_scheduler_type=optim.lr_scheduler_type,
            warmup_steps=optim.warmup_steps,
            min_lr_ratio=optim.min_lr_ratio,
        ),
    )


# ---------------------------------------------------------------------- the weights, and what works on them


def machine_of(bundle: Bundle, inputs: Inputs, ranks: Ranks, *, loss_chunk_size: int | None = None) -> Machine:
    """Load the weights, prove head and isolation on them, and build the step around them.

    `loss_chunk_size`: rows of logits that exist at a time; None: as many as fit a budget of bytes.
    """
    if ranks.device.type == "cpu":
        keep_freed_memory()
    precision = resolve_precision(bundle.train.precision, ranks.device)
    compute_dtype = torch.bfloat16 if precision == "bf16" else None
    loaded = load_model_of(
        bundle, inputs.tokenizer, device=ranks.device, compute_dtype=compute_dtype, whole=ranks.world_size == 1
    )
    model = loaded.model
    head = find_head(model)
    head_report = head_self_test(model, head)
    isolation = isolation_self_test(model)
    flat = _flat(bundle, isolation)
    if bundle.train.torch_compile:
        compile_blocks(model, gradient_checkpointing=bundle.train.gradient_checkpointing, device=ranks.device)
    else:
        set_gradient_checkpointing(model, bundle.train.gradient_checkpointing)
    router = find_router(model) if bundle.sft.router_aux_loss_coef else None
    shares = _shares_prefixes(bundle, model, flat=flat, balances=router is not None, compute_dtype=compute_dtype)
    loss = partial(
        forward_loss,
        model=model,
        loss_type=bundle.sft.loss_type,
        chunk_size=loss_chunk_size,
        device=ranks.device,
        router=router,
    )
    sharded = _sharded(bundle, model, loss, ranks, fused=head_report.fused, compute_dtype=compute_dtype)
    weights = Weights(model.named_parameters(), compute_dtype=None if sharded else compute_dtype)
    forward = sharded.forward if sharded else partial(loss, head=head if head_report.fused else None, weights=weights)
    optimizer = _optimizer(bundle, weights, precision=precision)
    step = TrainStep(
        forward,
        weights,
        optimizer,
        max_grad_norm=bundle.optim.max_grad_norm,
        ranks=ranks,
        activations=_activations(bundle, model),
        before_batch=sharded.before_batch if sharded else lambda last: None,
        router_aux_loss_coef=None if router is None else bundle.sft.router_aux_loss_coef,
    )
    batches = partial(_batches, bundle=bundle, pad_token_id=_pad_token_id(inputs), flat=flat, shares=shares)

    def batches_at(epoch: int, within: int) -> Sequence[Batch]:
        return list(batches(inputs.train, epoch, within, rank=ranks.rank))

    def eval_batches() -> Iterator[Batch]:
        assert inputs.evaluation is not None
        for step in range(inputs.evaluation.steps_per_epoch):
            yield from batches(inputs.evaluation, 0, step, rank=ranks.rank)

    return Machine(
        model=model,
        saved=loaded.saved,
        base_digest=loaded.base_digest,
        weights=weights,
        optimizer=optimizer,
        step=step,
        batches_at=batches_at,
        evaluate=lambda: evaluate_loss(model, forward, eval_batches(), ranks=ranks),
        answer=_answerer(bundle, inputs, model, ranks=ranks, gathered=sharded.gathered if sharded else nullcontext),
        sharded=sharded,
        precision=precision,
        head_report=head_report,
        isolation=isolation,
        shares_prefixes=shares,
    )


def _sharded(
    bundle: Bundle,
    model: Any,
    loss: Callable[..., LossSums],
    ranks: Ranks,
    *,
    fused: bool,
    compute_dtype: torch.dtype | None,
) -> Sharded | None:
    """The model spread over the ranks; None on one. The head is found anew each time: its weight comes and goes."""
    strategy = resolve_strategy(bundle.distributed.strategy, ranks.world_size)
    if strategy == "none":
        return None
    settings = bundle.distributed
    return Sharded(
        model,
        lambda batch, scale: loss(batch, scale, head=find_head(model) if fused else None, weights=None),
        ranks=ranks,
        strategy=strategy,
        hsdp_replicas=settings.hsdp_replicas,
        reshard_after_forward=settings.reshard_after_forward,
        cpu_offload=settings.fsdp_cpu_offload,
        compute_dtype=compute_dtype,
    )


def _flat(bundle: Bundle, isolation: IsolationReport) -> bool:
    """Whether batches are laid out flat: as configured, else wherever this model was seen to isolate documents.

    Raises ModelError where documents would share a row of a model that does not isolate them.
    """
    shares_rows = bundle.sft.packing or eval_packing(bundle) or bundle.sft.padding_free is True
    if shares_rows and not isolation.passed:
        raise ModelError(
            Problem(
                "sft.packing" if bundle.sft.packing else "sft.padding_free",
                f"documents that share a row of this model see each other: a logit of the second moves by "
                f"{isolation.max_difference:.2g} on account of the first (allowed: {isolation.tolerance:.2g})",
                help="set sft.packing = false and leave out sft.padding_free, or set another model.attn_implementation",
            )
        )
    return isolation.passed if bundle.sft.padding_free is None else bundle.sft.padding_free


def _shares_prefixes(
    bundle: Bundle, model: Any, *, flat: bool, balances: bool, compute_dtype: torch.dtype | None
) -> bool:
    """Whether a prefix is computed once: as configured, else wherever that was seen to be exact.

    Raises ModelError where it was asked for and is not.
    """
    wanted = bundle.sft.share_prefix
    if wanted is False:
        return False
    rates = random_rates(model.config)
    if bundle.peft.use_peft and bundle.peft.lora_dropout:
        rates["peft.lora_dropout"] = bundle.peft.lora_dropout
    against = "batches are not laid out flat"
    if flat:
        against = reason_against(model, rates=rates, balances=balances, compute_dtype=compute_dtype) or ""
    if against and wanted:
        help = "leave it out: prefixes are then shared wherever that is exact"
        raise ModelError(Problem("sft.share_prefix", f"true cannot be had here: {against}", help=help))
    return not against


def _pad_token_id(inputs: Inputs) -> int:
    """Padding trains nothing and is a document of its own, so any id serves where the tokenizer has none."""
    pad_token_id = inputs.tokenizer.pad_token_id
    return 0 if pad_token_id is None else int(pad_token_id)


def _optimizer(bundle: Bundle, weights: Weights, *, precision: str) -> torch.optim.Optimizer:
    make = OPTIMIZERS[bundle.optim.optimizer]
    settings = {**attrs.asdict(bundle.optim, recurse=False), "precision": precision}
    return make(list(weights.named.items()), **parameters_of(settings, make))


def _activations(bundle: Bundle, model: Any) -> Callable[[], AbstractContextManager[Any]]:
    if not bundle.sft.activation_offloading:
        return nullcontext
    offloading = ActivationOffloading(model)
    return lambda: offloading


def _batches(
    split: Split, epoch: int, step: int, *, rank: int, bundle: Bundle, pad_token_id: int, flat: bool, shares: bool
) -> Iterator[Batch]:
    rows, plan, step = split.at(epoch, step)
    for indices in plan.micro_batches(step, rank):
        yield collate(
            rows,
            plan.bins,
            indices,
            padding_free=flat,
            pad_token_id=pad_token_id,
            pad_to_multiple_of=bundle.sft.pad_to_multiple_of,
            share_prefix=shares,
        )


def _answerer(
    bundle: Bundle,
    inputs: Inputs,
    model: Any,
    *,
    ranks: Ranks,
    gathered: Callable[[], AbstractContextManager[None]],
) -> Callable[[], tuple[Answer, ...]]:
    """Greedy answers to the first held-out rows; every rank goes along, since each may hold a part of the weights."""
    count = bundle.eval.generate_samples
    if inputs.evaluation is None or not count:
        return lambda: ()
    prompts = inputs.evaluation.rows.generation_prompts(count)
    stop_token_ids = _stop_token_ids(inputs, model)
    generate = partial(
        greedy,
        model,
        max_new_tokens=bundle.eval.max_new_tokens,
        stop_token_ids=stop_token_ids,
        batch_size=bundle.eval.per_device_eval_batch_size,
        agree=ranks.same,
    )

    def answer() -> tuple[Answer, ...]:
        with gathered():
            generated = generate([prompt.input_ids for prompt in prompts])
        return answers_of(
            prompts,
            generated,
            decode=partial(inputs.tokenizer.decode, skip_special_tokens=True),
            stop_token_ids=stop_token_ids,
        )

    return answer


def _stop_token_ids(inputs: Inputs, model: Any) -> tuple[int, ...]:
    """The tokenizer's EOS token, and what the model's generation config stops at."""
    config = getattr(model, "generation_config", None)  # a foreign object: not every model has one
    configured = getattr(config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return tuple(dict.fromkeys(i for i in (inputs.tokenizer.eos_token_id, *listed) if i is not None))


__all__ = ["Inputs", "Machine", "inputs_of", "machine_of", "ranks_of", "tokenizer_of"]
