"""Every group and leaf of the configuration: its default, type, unit, help and bounds, in one place.

A group is a frozen attrs class; a leaf is made by `leaf`. All else about a leaf (its option, its
environment name, its help screen, its row in `show`, its line in `init`, its JSON Schema) is derived
from here. Leaf names are the field's own: Transformers' `TrainingArguments`, TRL's `SFTConfig`, peft's
`LoraConfig`, torchrun's. No two leaves share a flat name.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import attrs

from sftctl.config.limits import (
    AT_LEAST_0,
    AT_LEAST_1,
    BELOW_1,
    NOT_EMPTY,
    POSITIVE,
    PROBABILITY,
    Limit,
)
from sftctl.config.table import Table

EMPTY = Table()


def leaf(
    default: Any,
    help: str,
    *,
    unit: str | None = None,
    flat: str | None = None,
    check: Any = None,
    is_path: bool = False,
    may_be_hub_id: bool = False,
    words: tuple[str, ...] = (),
    common: bool = False,
) -> Any:
    """A leaf of a group.

    `flat` is the option's short spelling where the leaf's own name would clash or mislead
    (`name_or_path` -> `--model-name-or-path`). `is_path` marks what is read relative to the file that
    says it; `may_be_hub_id` that it is a Hub id where no such file exists; `words` are values that are no path.
    `common` puts it first in `--help`.
    """
    return attrs.field(
        default=default,
        validator=check,
        metadata={
            "help": help,
            "unit": unit,
            "flat": flat,
            "is_path": is_path,
            "may_be_hub_id": may_be_hub_id,
            "words": words,
            "common": common,
        },
    )


@attrs.frozen(kw_only=True)
class Run:
    """Where the run's files go and what makes it repeatable."""

    output_dir: str = leaf("runs", "Folder that holds the run directories.", check=NOT_EMPTY, is_path=True, common=True)
    run_name: str | None = leaf(
        None, "Name of the run directory; none: recipe, time and a short digest.", check=NOT_EMPTY, common=True
    )
    tags: tuple[str, ...] = leaf((), "Words to find the run by, handed to the trackers.", check=NOT_EMPTY)
    seed: int = leaf(42, "Seed of weights, data order and dropout.", check=Limit(low=0, high=2**32 - 1), common=True)
    overwrite: bool = leaf(False, "Replace a run directory of the same name instead of refusing it.")


@attrs.frozen(kw_only=True)
class Model:
    """The causal language model and its tokenizer."""

    name_or_path: str | None = leaf(
        None,
        "Hub id or local folder of the model.",
        flat="model_name_or_path",
        check=NOT_EMPTY,
        is_path=True,
        may_be_hub_id=True,
        common=True,
    )
    revision: str = leaf("main", "Branch, tag or commit of a Hub model.", flat="model_revision", check=NOT_EMPTY)
    init: Literal["pretrained", "random"] = leaf("pretrained", "Where the first weights come from.")
    architecture: Mapping[str, Any] = leaf(
        EMPTY, 'Fields of the model\'s config to set; with init = "random" and no name_or_path, model_type among them.'
    )
    tokenizer: str | None = leaf(
        None,
        "Tokenizer's Hub id or folder; none: the model's; \"bytes\": the built-in byte-level one.",
        check=NOT_EMPTY,
        is_path=True,
        may_be_hub_id=True,
        words=("bytes",),
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = leaf("float32", "Data type of the master weights.")
    attn_implementation: Literal[
        "auto", "varlen", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"
    ] = leaf("auto", "Attention function; auto takes the fastest that isolates documents on this device.")
    trust_remote_code: bool = leaf(False, "Run Python code that comes with the model folder.")
    chat_template_path: str | None = leaf(
        None, "Jinja chat template to use instead of the tokenizer's.", check=NOT_EMPTY, is_path=True
    )
    eos_token: str | None = leaf(None, "Token that ends an answer; none: the tokenizer's.", check=NOT_EMPTY)
    model_init_kwargs: Mapping[str, Any] = leaf(EMPTY, "Further keyword arguments of from_pretrained.")


@attrs.frozen(kw_only=True)
class Peft:
    """Adapters (peft) and quantised base weights (bitsandbytes)."""

    use_peft: bool = leaf(False, "Train a LoRA adapter instead of all weights.", common=True)
    lora_r: int = leaf(16, "Rank of the adapter.", check=AT_LEAST_1, common=True)
    lora_alpha: int = leaf(32, "Scale of the adapter, divided by the rank.", check=AT_LEAST_1)
    lora_dropout: float = leaf(0.05, "Dropout before the adapter.", check=BELOW_1)
    lora_target_modules: tuple[str, ...] | None = leaf(
        None, "Modules to adapt; none: all linear layers of the backbone.", check=NOT_EMPTY
    )
    lora_target_parameters: tuple[str, ...] | None = leaf(
        None, "Parameters to adapt that are not modules, as the experts of a mixture.", check=NOT_EMPTY
    )
    lora_modules_to_save: tuple[str, ...] | None = leaf(
        None, "Modules to train whole and save with the adapter.", check=NOT_EMPTY
    )
    use_rslora: bool = leaf(False, "Scale by alpha / sqrt(r), rank-stabilised LoRA (arXiv 2312.03732).")
    use_dora: bool = leaf(False, "Weight-decomposed LoRA (arXiv 2402.09353).")
    load_in_8bit: bool = leaf(False, "Load the base weights in 8 bits (CUDA only).")
    load_in_4bit: bool = leaf(False, "Load the base weights in 4 bits (CUDA only).")
    bnb_4bit_quant_type: Literal["fp4", "nf4"] = leaf("nf4", "Kind of 4-bit number.")
    use_bnb_nested_quant: bool = leaf(False, "Quantise the quantisation constants too.")
    bnb_4bit_quant_storage: Literal["uint8", "float16", "bfloat16", "float32"] | None = leaf(
        None, "Data type that stores the packed 4-bit weights; none: uint8."
    )


@attrs.frozen(kw_only=True)
class Dataset:
    """One source of rows: an entry of `data.datasets` or `data.eval_datasets`."""

    path: str = leaf(
        attrs.NOTHING, "Local file, folder or glob, or a Hub id.", check=NOT_EMPTY, is_path=True, may_be_hub_id=True
    )
    name: str | None = leaf(None, "Configuration (subset) of a Hub data set.", check=NOT_EMPTY)
    data_dir: str | None = leaf(None, "Folder inside a Hub data set.", check=NOT_EMPTY)
    data_files: tuple[str, ...] | None = leaf(None, "Files inside a folder or Hub data set.", check=NOT_EMPTY)
    split: str = leaf("train", "Split, or a slice of one such as train[:10%].", check=NOT_EMPTY)
    format: Literal["auto", "pretokenized", "messages", "prompt_completion", "alpaca", "text"] = leaf(
        "auto", "Shape of the rows; auto: found from the columns."
    )
    columns: Mapping[str, str] = leaf(EMPTY, "Renames: the name wanted here = the column's name in the source.")
    fraction: float | None = leaf(
        None, "Share of the mixture; shares are normalised to one and no source is oversampled.", check=POSITIVE
    )
    weight: float | None = leaf(None, 'Weight of this source with mixing = "interleave".', check=POSITIVE)
    limit: int | None = leaf(None, "Read only the first rows.", unit="rows", check=AT_LEAST_1)


@attrs.frozen(kw_only=True)
class Data:
    """Rows: where they come from, how sources mix, what happens to rows that do not fit."""

    datasets: tuple[Dataset, ...] = leaf((), "Sources to train on.", common=True)
    eval_datasets: tuple[Dataset, ...] = leaf((), "Sources to evaluate on.", common=True)
    test_split_size: float | None = leaf(
        None, "Rows held out of the training data: a share below 1, or a number.", check=POSITIVE
    )
    streaming: bool = leaf(
        False, "Read training rows as a stream, a window at a time, instead of whole; needs train.max_steps."
    )
    mixing: Literal["concat", "interleave"] = leaf(
        "concat", "How sources are joined: one after the other, or drawn in turn by their weights."
    )
    stopping_strategy: Literal["first_exhausted", "all_exhausted"] = leaf(
        "first_exhausted", "When interleaving ends: at the first source that runs out, or when all have."
    )
    dataset_text_field: str = leaf("text", "Column of plain text.", check=NOT_EMPTY)
    shuffle: bool = leaf(True, "Shuffle the batches of each epoch, seeded.")
    dataset_num_proc: int | None = leaf(
        None, "Processes that prepare rows; none: threads of the tokenizer.", check=AT_LEAST_1
    )
    on_bad_row: Literal["error", "skip"] = leaf(
        "error", "Stop at a row that does not fit, or write it to dropped.jsonl."
    )
    on_mask_problem: Literal["error", "warn"] = leaf("error", "Stop when the mask proof fails, or only say so.")
    cache_dir: str | None = leaf(
        None, "Folder of prepared data; none: the user's cache folder.", check=NOT_EMPTY, is_path=True
    )


@attrs.frozen(kw_only=True)
class Sft:
    """What is trained on each row, how rows become batches, and the loss."""

    max_length: int = leaf(1024, "Longest sequence.", unit="tokens", check=Limit(low=2), common=True)
    truncation_mode: Literal["keep_start", "keep_end", "drop", "error"] = leaf(
        "keep_start", "What happens to a row longer than max_length."
    )
    packing: bool = leaf(False, "Put several rows into one sequence; they do not see each other.", common=True)
    packing_strategy: Literal["bfd", "bfd_split", "wrapped"] = leaf(
        "bfd", "Best-fit decreasing, the same with long rows split, or one stream cut at max_length."
    )
    eval_packing: bool | None = leaf(None, "Pack evaluation rows; none: as packing.")
    padding_free: bool | None = leaf(
        None, "Lay a batch out flat, without padding; none: on wherever the attention isolates documents."
    )
    share_prefix: bool | None = leaf(
        None, "Compute what documents of a flat batch begin with and do not train on once; none: on where exact."
    )
    pad_to_multiple_of: int | None = leaf(
        None, "Pad each batch's length to a multiple.", unit="tokens", check=AT_LEAST_1
    )
    completion_only_loss: bool | None = leaf(
        None, "Train only completions; none: yes for prompt-completion rows, no for others.", common=True
    )
    assistant_only_loss: bool = leaf(False, "Train only the assistant's turns of a conversation.", common=True)
    last_turn_only_loss: bool = leaf(False, "Of those, train only the last turn.")
    loss_type: Literal["nll", "dft"] = leaf(
        "nll", "Negative log-likelihood, or Dynamic Fine-Tuning (arXiv 2508.05629).", common=True
    )
    router_aux_loss_coef: float = leaf(
        0.001, "Weight of the load-balancing loss; mixture-of-experts models only.", check=AT_LEAST_0
    )
    activation_offloading: bool = leaf(
        False, "Keep activations in host memory between forward and backward.", common=True
    )


@attrs.frozen(kw_only=True)
class Optim:
    """Optimiser, learning rate and its schedule."""

    optimizer: Literal["adamw", "adamw_8bit", "adafactor", "sgd", "muon"] = leaf("adamw", "Optimiser.")
    learning_rate: float = leaf(2e-5, "Peak learning rate.", check=POSITIVE, common=True)
    weight_decay: float = leaf(0.0, "Decoupled weight decay, on matrices only.", check=AT_LEAST_0)
    betas: tuple[float, float] = leaf((0.9, 0.999), "Decay rates of Adam's moments.", check=BELOW_1)
    epsilon: float = leaf(1e-8, "Adam's denominator constant.", check=POSITIVE)
    max_grad_norm: float | None = leaf(1.0, "Clip the gradient to this norm; none: do not.", check=POSITIVE)
    lr_scheduler_type: Literal[
        "linear",
        "cosine",
        "constant",
        "constant_with_warmup",
        "polynomial",
        "inverse_sqrt",
        "warmup_stable_decay",
    ] = leaf("linear", "Shape of the learning rate over the run.", common=True)
    warmup_steps: float = leaf(0.0, "Steps of linear warm-up; below 1 a share of all steps.", check=AT_LEAST_0)
    min_lr_ratio: float = leaf(0.0, "Learning rate at the end, as a share of the peak.", check=PROBABILITY)


@attrs.frozen(kw_only=True)
class Train:
    """Length of the run, batch, precision, and what trades speed for memory."""

    num_train_epochs: float = leaf(3.0, "Passes over the training data.", unit="epochs", check=POSITIVE, common=True)
    max_steps: int | None = leaf(
        None,
        "Stop after this many optimiser steps; overrides num_train_epochs.",
        unit="steps",
        check=AT_LEAST_1,
        common=True,
    )
    per_device_train_batch_size: int = leaf(
        8, "Rows (packed: sequences) a device takes at a time.", unit="rows", check=AT_LEAST_1, common=True
    )
    gradient_accumulation_steps: int = leaf(1, "Micro-batches added up before a step.", check=AT_LEAST_1, common=True)
    precision: Literal["auto", "fp32", "bf16"] = leaf(
        "auto", "Compute precision; auto: bf16 where the device computes in it."
    )
    gradient_checkpointing: Literal[True, False, "selective"] = leaf(
        True, "Recompute activations: all (true), all but matrix products and attention (selective), none (false)."
    )
    torch_compile: bool = leaf(False, "Compile the decoder blocks.")
    full_determinism: bool = leaf(False, "Deterministic kernels only.")


@attrs.frozen(kw_only=True)
class Eval:
    """When and how the model is evaluated, and what follows from it."""

    eval_steps: int | None = leaf(
        None, "Evaluate every so many steps; none: at the end of each epoch.", unit="steps", check=AT_LEAST_1
    )
    eval_on_start: bool = leaf(False, "Evaluate before the first step too.")
    per_device_eval_batch_size: int = leaf(8, "Rows a device evaluates at a time.", unit="rows", check=AT_LEAST_1)
    eval_samples: int | None = leaf(None, "Evaluate only the first rows; none: all.", unit="rows", check=AT_LEAST_1)
    generate_samples: int = leaf(
        0,
        "Held-out rows answered greedily at each evaluation, for eval_exact_match and eval_stopped.",
        unit="rows",
        check=AT_LEAST_0,
    )
    max_new_tokens: int = leaf(256, "Longest generated answer.", unit="tokens", check=AT_LEAST_1)
    metric_for_best_model: Literal[
        "eval_loss", "eval_mean_token_accuracy", "eval_entropy", "eval_exact_match", "eval_stopped"
    ] = leaf("eval_loss", "Metric that decides which checkpoint is best.")
    early_stopping_patience: int | None = leaf(
        None, "Stop after this many evaluations without a better metric.", unit="evaluations", check=AT_LEAST_1
    )
    load_best_model_at_end: bool = leaf(False, "Save the best checkpoint's weights as the final model.")


@attrs.frozen(kw_only=True)
class Checkpoint:
    """What is kept of a run in progress, and how it goes on."""

    save_steps: int = leaf(500, "Save a checkpoint every so many steps.", unit="steps", check=AT_LEAST_1, common=True)
    save_total_limit: int | None = leaf(3, "Keep this many checkpoints; none: all.", check=AT_LEAST_1)
    resume: str = leaf(
        "auto",
        "Go on from the newest checkpoint (auto), never, or from a path.",
        check=NOT_EMPTY,
        is_path=True,
        words=("auto", "never"),
        common=True,
    )
    async_save: bool = leaf(True, "Write checkpoints while training goes on.")
    save_final: bool = leaf(True, "Save the final model.")


@attrs.frozen(kw_only=True)
class Log:
    """What is logged, how often, and to which trackers."""

    logging_steps: int = leaf(10, "Log every so many steps.", unit="steps", check=AT_LEAST_1)
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = leaf(
        (), "Trackers beside metrics.jsonl."
    )
    project: str | None = leaf(None, "Project name for the trackers; none: sftctl.", check=NOT_EMPTY)


@attrs.frozen(kw_only=True)
class Distributed:
    """Processes, machines, and how the weights are spread over them."""

    strategy: Literal["auto", "none", "fsdp", "ddp"] = leaf("auto", "auto: none on one process, fsdp on more.")
    nproc_per_node: int = leaf(1, "Processes a machine.", check=AT_LEAST_1)
    nnodes: int = leaf(1, "Machines.", check=AT_LEAST_1)
    node_rank: int = leaf(0, "Number of this machine.", check=AT_LEAST_0)
    rdzv_endpoint: str | None = leaf(None, "host:port where the machines meet.", check=NOT_EMPTY)
    hsdp_replicas: int = leaf(1, "Replicas of the sharded model (HSDP).", check=AT_LEAST_1)
    fsdp_cpu_offload: bool = leaf(False, "Keep the sharded weights and optimiser in host memory.")
    reshard_after_forward: bool = leaf(True, "Free gathered weights after the forward pass.")


def _names_only(env: Mapping[str, str]) -> str:
    """Variables without their values, which may be secrets, for `repr`."""
    return "{" + ", ".join(env) + "}"


@attrs.frozen(kw_only=True, slots=False)
class Bundle:
    """One run, whole: every group, frozen. `sftctl.evolve` makes a changed, revalidated copy.

    `env` is a free table of environment variables, set before torch starts unless the caller has them.
    `extensions` holds the groups that were registered by others, each by its name; `bundle.reward` finds them too.
    """

    run: Run = attrs.field(factory=Run)
    model: Model = attrs.field(factory=Model)
    peft: Peft = attrs.field(factory=Peft)
    data: Data = attrs.field(factory=Data)
    sft: Sft = attrs.field(factory=Sft)
    optim: Optim = attrs.field(factory=Optim)
    train: Train = attrs.field(factory=Train)
    eval: Eval = attrs.field(factory=Eval)
    checkpoint: Checkpoint = attrs.field(factory=Checkpoint)
    log: Log = attrs.field(factory=Log)
    distributed: Distributed = attrs.field(factory=Distributed)
    env: Mapping[str, str] = attrs.field(default=EMPTY, repr=_names_only)
    extensions: Mapping[str, Any] = attrs.field(default=EMPTY)

    if not TYPE_CHECKING:  # a checker knows the built-in groups, and nothing of those that are registered

        def __getattr__(self, name: str) -> Any:
            extensions = self.__dict__.get("extensions", EMPTY)
            if name in extensions:
                return extensions[name]
            raise AttributeError(f"a bundle has no group {name!r}")


BUILT_IN_GROUPS: dict[str, type] = {
    "run": Run,
    "model": Model,
    "peft": Peft,
    "data": Data,
    "sft": Sft,
    "optim": Optim,
    "train": Train,
    "eval": Eval,
    "checkpoint": Checkpoint,
    "log": Log,
    "distributed": Distributed,
}


class FrozenBundleError(attrs.exceptions.FrozenInstanceError):
    """Raised for an assignment to a bundle or a group. An AttributeError, as of every frozen attrs class."""

    def __init__(self, message: str) -> None:
        """Takes a message, which attrs' own does not."""


def _refuse_change(self: object, name: str, value: object = None) -> None:
    raise FrozenBundleError(f"{name} is frozen: sftctl.evolve makes a changed copy of a bundle")


for _cls in (Bundle, Dataset, *BUILT_IN_GROUPS.values()):
    _cls.__setattr__ = _refuse_change  # type: ignore[method-assign]  # attrs refuses too, in fewer words
    _cls.__delattr__ = _refuse_change  # type: ignore[method-assign, assignment]  # the same

__all__ = ["BUILT_IN_GROUPS", "Bundle", "Dataset", "leaf"]
