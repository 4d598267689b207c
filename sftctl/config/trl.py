"""TRL's names and ours: every field of SFTConfig, ModelConfig, ScriptArguments and DatasetMixtureConfig (TRL 1.16).

The TrainingArguments that people set are among them (SFTConfig inherits them), and names of earlier versions that
live on in people's files. A field either goes to leaves of ours, or there is a reason why not. `config import`
carries a file over by this table, suggestions read it, and the reference page is made from it.
"""

from __future__ import annotations

from typing import Literal

import attrs

from sftctl.config import trl_values as turns
from sftctl.config.trl_values import Turn

Source = Literal["SFTConfig", "TrainingArguments", "ModelConfig", "ScriptArguments", "DatasetMixtureConfig", "earlier"]


@attrs.frozen
class Field:
    """A field of TRL's. `to` are the leaves it goes to, `turn` makes their values; none: `why` not."""

    source: Source
    to: tuple[str, ...] = ()
    why: str = ""
    turn: Turn | None = None


def _same(source: Source, names: str) -> dict[str, Field]:
    """Fields that mean the same here: `group.name`, or `name=group.other`."""
    fields = {}
    for each in names.split():
        name, equals, path = each.partition("=")
        fields[name if equals else each.partition(".")[2]] = Field(source, (path if equals else each,))
    return fields


def _no(source: Source, names: str, why: str) -> dict[str, Field]:
    """Fields that are not carried over, and why."""
    return {name: Field(source, why=why) for name in names.split()}


def _turn(source: Source, name: str, to: str, turn: Turn, why: str = "") -> dict[str, Field]:
    """A field whose value is turned into values of other leaves."""
    return {name: Field(source, tuple(to.split()), why, turn)}


_KERNELS = "the fused loss is built in, and on wherever it agrees with the model"
_HUB = "sftctl uploads nothing: push the run's final/ with the Hub's own tool"

_SFT: dict[str, Field] = {
    **_same(
        "SFTConfig",
        """model.trust_remote_code sft.router_aux_loss_coef model.chat_template_path data.dataset_text_field
        data.dataset_num_proc model.eos_token sft.truncation_mode sft.packing sft.padding_free sft.eval_packing
        sft.completion_only_loss sft.assistant_only_loss sft.activation_offloading""",
    ),
    **_turn("SFTConfig", "model_init_kwargs", "model.model_init_kwargs", turns.model_kwargs),
    **_turn("SFTConfig", "max_length", "sft.max_length", turns.max_length),
    **_turn("SFTConfig", "packing_strategy", "sft.packing_strategy", turns.packing_strategy),
    **_turn("SFTConfig", "pad_to_multiple_of", "sft.pad_to_multiple_of", turns.multiple),
    **_turn("SFTConfig", "loss_type", "sft.loss_type", turns.loss),
    **_no("SFTConfig", "dataset_kwargs", "rows are always prepared; name their columns by data.datasets"),
    **_no("SFTConfig", "shuffle_dataset", "every epoch is shuffled by the seed: data.shuffle"),
    **_no("SFTConfig", "pad_token", "padding is a document of its own and trains nothing, whatever its token"),
}

_TRAINING: dict[str, Field] = {
    **_same(
        "TrainingArguments",
        """train.per_device_train_batch_size train.num_train_epochs optim.learning_rate optim.warmup_steps
        optim.weight_decay adam_epsilon=optim.epsilon train.gradient_accumulation_steps optim.max_grad_norm
        train.gradient_checkpointing activation_checkpointing=train.gradient_checkpointing train.torch_compile
        train.full_determinism eval.per_device_eval_batch_size eval.eval_on_start eval.load_best_model_at_end
        checkpoint.save_total_limit run.seed log.project""",
    ),
    **_turn("TrainingArguments", "output_dir", "run.output_dir run.run_name", turns.output_dir),
    **_turn("TrainingArguments", "run_name", "run.run_name", turns.run_name),
    **_turn("TrainingArguments", "max_steps", "train.max_steps", turns.max_steps),
    **_turn("TrainingArguments", "lr_scheduler_type", "optim.lr_scheduler_type", turns.schedule),
    **_turn("TrainingArguments", "lr_scheduler_kwargs", "optim.min_lr_ratio", turns.schedule_kwargs),
    **_turn("TrainingArguments", "optim", "optim.optimizer", turns.optim),
    **_turn("TrainingArguments", "adam_beta1", "optim.betas", turns.betas),
    **_turn("TrainingArguments", "adam_beta2", "optim.betas", turns.betas),
    **_turn("TrainingArguments", "bf16", "train.precision", turns.bf16),
    **_turn("TrainingArguments", "fp16", "train.precision", turns.fp16, "bf16 and fp32 only"),
    **_turn("TrainingArguments", "logging_steps", "log.logging_steps", turns.whole_steps("log.logging_steps")),
    **_turn("TrainingArguments", "logging_strategy", "", turns.strategy("it is logged"), "it is logged by steps"),
    **_turn("TrainingArguments", "report_to", "log.report_to", turns.report_to),
    **_turn("TrainingArguments", "eval_strategy", "eval.eval_steps data.eval_datasets", turns.eval_strategy),
    **_turn("TrainingArguments", "eval_steps", "eval.eval_steps", turns.eval_steps),
    **_turn("TrainingArguments", "save_strategy", "", turns.strategy("it is saved"), "it is saved by steps"),
    **_turn("TrainingArguments", "save_steps", "checkpoint.save_steps", turns.whole_steps("checkpoint.save_steps")),
    **_turn("TrainingArguments", "metric_for_best_model", "eval.metric_for_best_model", turns.metric),
    **_turn("TrainingArguments", "resume_from_checkpoint", "checkpoint.resume", turns.resume),
    **_turn("TrainingArguments", "use_cpu", "env.CUDA_VISIBLE_DEVICES", turns.use_cpu),
    **_turn("TrainingArguments", "train_sampling_strategy", "data.shuffle", turns.sampling),
    **_turn("TrainingArguments", "fsdp", "distributed.strategy distributed.fsdp_cpu_offload", turns.fsdp),
    **_turn(
        "TrainingArguments",
        "fsdp_config",
        "distributed.reshard_after_forward distributed.fsdp_cpu_offload",
        turns.fsdp_config,
    ),
    **_turn(
        "TrainingArguments",
        "average_tokens_across_devices",
        "",
        turns.only(True, "a loss is always divided by the tokens of the whole global batch"),
        "always on: a loss is divided by the tokens of the whole global batch",
    ),
    **_no("TrainingArguments", "use_liger_kernel liger_kernel_config", _KERNELS),
    **_no("TrainingArguments", "optim_args optim_target_modules", "an optimiser's settings are those of [optim]"),
    **_no("TrainingArguments", "label_smoothing_factor", "label smoothing is not here"),
    **_no("TrainingArguments", "neftune_noise_alpha", "NEFTune noise is not here"),
    **_no("TrainingArguments", "bf16_full_eval fp16_full_eval", "evaluation computes in train.precision"),
    **_no("TrainingArguments", "tf32", 'float32 products are exact; train.precision = "bf16" is the fast way'),
    **_no(
        "TrainingArguments",
        "gradient_checkpointing_kwargs activation_checkpointing_kwargs",
        'checkpointing is non-reentrant: true, false or "selective"',
    ),
    **_no("TrainingArguments", "torch_compile_backend torch_compile_mode", "blocks compile with torch's defaults"),
    **_no("TrainingArguments", "use_cache", "a cache of keys and values breaks isolation in training: always off"),
    **_no("TrainingArguments", "torch_empty_cache_steps", "buffers are reused; there is nothing to empty"),
    **_no("TrainingArguments", "auto_find_batch_size", "set the batch size that fits"),
    **_no("TrainingArguments", "logging_first_step", "log.logging_steps says which steps are logged"),
    **_no(
        "TrainingArguments",
        "log_level log_level_replica disable_tqdm log_on_each_node",
        "what is printed is up to the command line, not to the configuration",
    ),
    **_no("TrainingArguments", "logging_nan_inf_filter", "a loss that is not finite stops the run, never filtered"),
    **_no("TrainingArguments", "include_num_input_tokens_seen", "every record counts its tokens"),
    **_no(
        "TrainingArguments",
        "trackio_space_id trackio_bucket_id trackio_static_space_id",
        "trackio is given log.project, and reads its own variables: env.TRACKIO_SPACE_ID",
    ),
    **_no("TrainingArguments", "eval_delay", "the first evaluation is after eval.eval_steps, or eval.eval_on_start"),
    **_no(
        "TrainingArguments",
        """prediction_loss_only eval_do_concat_batches eval_use_gather_object eval_accumulation_steps
        include_for_metrics batch_eval_metrics label_names""",
        "the engine computes the loss and its metrics itself",
    ),
    **_no("TrainingArguments", "save_only_model", "a checkpoint is whole, so that a run can go on from it"),
    **_no("TrainingArguments", "save_on_each_node", "ranks write one checkpoint together"),
    **_no("TrainingArguments", "enable_jit_checkpoint", "SIGTERM and SIGINT always end a run with a checkpoint"),
    **_no(
        "TrainingArguments",
        """push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision""",
        _HUB,
    ),
    **_no("TrainingArguments", "greater_is_better", "lower is better for losses, higher for all other metrics"),
    **_no("TrainingArguments", "ignore_data_skip", "a resumed run goes on at the very batch where it stopped"),
    **_no("TrainingArguments", "restore_callback_states_from_checkpoint", "there are no callbacks to restore"),
    **_no("TrainingArguments", "data_seed", "one seed is for weights and data: run.seed"),
    **_no("TrainingArguments", "accelerator_config parallelism_config", "the layout of processes is [distributed]"),
    **_no("TrainingArguments", "dataloader_drop_last", "the last, smaller batch of an epoch always trains"),
    **_no(
        "TrainingArguments",
        """dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
        dataloader_multiprocessing_context dataloader_in_order""",
        "batches come from a plan in the same process, without worker processes",
    ),
    **_no("TrainingArguments", "remove_unused_columns", "the format takes the columns it needs"),
    **_no("TrainingArguments", "length_column_name", "lengths are computed, not read"),
    **_no(
        "TrainingArguments",
        """ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend
        ddp_timeout""",
        "DDP is set up as torch sets it up",
    ),
    **_no("TrainingArguments", "deepspeed", 'DeepSpeed is not here: distributed.strategy = "fsdp" shards alike'),
    **_no("TrainingArguments", "debug", "torch's own tools find what this one finds"),
    **_no("TrainingArguments", "skip_memory_metrics", "peak memory is in every record"),
    **_no("TrainingArguments", "do_train do_eval do_predict", "the command says what is done"),
    **_no("TrainingArguments", "local_rank", "the launcher sets it"),
}

_MODEL: dict[str, Field] = {
    **_same(
        "ModelConfig",
        """model_name_or_path=model.name_or_path model_revision=model.revision model.dtype peft.use_peft peft.lora_r
        peft.lora_alpha peft.lora_dropout peft.lora_target_parameters
        peft.lora_modules_to_save peft.use_rslora peft.use_dora peft.load_in_8bit peft.load_in_4bit
        peft.bnb_4bit_quant_type peft.use_bnb_nested_quant peft.bnb_4bit_quant_storage""",
    ),
    **_turn("ModelConfig", "lora_target_modules", "peft.lora_target_modules", turns.target_modules),
    **_turn("ModelConfig", "attn_implementation", "model.attn_implementation", turns.attention),
    **_turn(
        "ModelConfig",
        "lora_task_type",
        "",
        turns.only("CAUSAL_LM", "only causal language models are trained"),
        "only causal language models are trained",
    ),
}

_SCRIPT: dict[str, Field] = {
    **_turn("ScriptArguments", "dataset_name", "data.datasets data.eval_datasets", turns.dataset),
    **_turn("ScriptArguments", "dataset_config", "data.datasets", turns.nothing, "the name of the entry"),
    **_turn("ScriptArguments", "dataset_train_split", "data.datasets", turns.nothing, "the split of the entry"),
    **_turn("ScriptArguments", "dataset_test_split", "data.eval_datasets", turns.nothing, "the split of the entry"),
    **_same("ScriptArguments", "dataset_streaming=data.streaming"),
    **_no("ScriptArguments", "ignore_bias_buffers", "DDP's buffers are left alone"),
    **_turn("DatasetMixtureConfig", "datasets", "data.datasets", turns.mixture, "columns are taken by the format"),
    **_same("DatasetMixtureConfig", "data.streaming data.test_split_size"),
}

_EARLIER: dict[str, Field] = {
    **_turn("earlier", "warmup_ratio", "optim.warmup_steps", turns.warmup_ratio),
    **_turn("earlier", "max_seq_length", "sft.max_length", turns.max_length),
    **_turn("earlier", "evaluation_strategy", "eval.eval_steps data.eval_datasets", turns.eval_strategy),
    **_turn("earlier", "no_cuda", "env.CUDA_VISIBLE_DEVICES", turns.use_cpu),
    **_same("earlier", "torch_dtype=model.dtype"),
    **_turn(
        "earlier",
        "group_by_length",
        "",
        turns.only(False, "rows of like length go together by sft.packing"),
        "rows of like length go together by sft.packing",
    ),
    **_no("earlier", "overwrite_output_dir", "a run directory is replaced by run.overwrite only"),
    **_no("earlier", "save_safetensors", "weights are always saved as safetensors"),
    **_no("earlier", "logging_dir", "trackers log into the run directory"),
    **_no("earlier", "dataset_batch_size", "rows are prepared by the tokenizer's own threads"),
    **_no("earlier", "push_to_hub_model_id push_to_hub_organization push_to_hub_token", _HUB),
    **_no("earlier", "use_liger", _KERNELS),
    **_no("earlier", "fp16_backend half_precision_backend fp16_opt_level", "bf16 is autocast by torch"),
}

FIELDS: dict[str, Field] = {**_SFT, **_TRAINING, **_MODEL, **_SCRIPT, **_EARLIER}


def hint(name: str) -> str | None:
    """What a suggestion says of a name of TRL's that is none of ours: where it goes, or why there is none."""
    field = FIELDS.get(name)
    if field is None:
        return None
    if field.to:
        return f"TRL's {name} is {' and '.join(field.to)} here"
    return f"TRL's {name} has no counterpart: {field.why}"


def page() -> str:
    """The mapping as a page of the reference, in Markdown: docs/reference/trl.md."""
    lines = [
        "# TRL's settings, and ours",
        "",
        "Where each field of TRL 1.16 goes, or why it goes nowhere. `sftctl config import FILE` reads a TRL YAML, or a",
        "command line with its flags, by this table. Made from `sftctl/config/trl.py`.",
        "",
        "| TRL's field | of | here |",
        "|---|---|---|",
    ]
    for name, field in FIELDS.items():
        here = ", ".join(f"`{path}`" for path in field.to)
        note = f" ({field.why})" if here and field.why else field.why
        source = "an earlier version" if field.source == "earlier" else field.source
        lines.append(f"| `{name}` | {source} | {here}{note} |")
    return "\n".join(lines) + "\n"
