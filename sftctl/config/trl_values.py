"""Values of TRL's fields as values of ours: pure functions, one for each field that is not carried over as it is.

Each takes the field's value and all fields of the file, for those that mean something only together, and
returns leaves of ours with their values (none: it is what happens anyway), or the reason why there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Fields = Mapping[str, Any]
Outcome = dict[str, Any] | str
Turn = Callable[[Any, Fields], Outcome]


def on(value: Any) -> bool:
    return value is True or (isinstance(value, str) and value.lower() in ("true", "yes", "on"))


def optim(value: Any, _: Fields) -> Outcome:
    names = {
        "adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_hf": "adamw", "adamw_torch_xla": "adamw",
        "adamw_bnb_8bit": "adamw_8bit", "adamw_8bit": "adamw_8bit", "paged_adamw_8bit": "adamw_8bit",
        "paged_adamw_32bit": "adamw", "adafactor": "adafactor", "sgd": "sgd", "muon": "muon",
    }  # fmt: skip
    return {"optim.optimizer": names[value]} if value in names else f"there is no {value} here"


def schedule(value: Any, fields: Fields) -> Outcome:
    ours = ("linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt", "warmup_stable_decay")
    if value in ours:
        return {"optim.lr_scheduler_type": value}
    if value in ("cosine_with_min_lr", "cosine_warmup_with_min_lr"):
        return {"optim.lr_scheduler_type": "cosine"}
    return f"there is no {value} here"


def schedule_kwargs(value: Any, fields: Fields) -> Outcome:
    if isinstance(value, Mapping) and set(value) == {"min_lr_rate"}:
        return {"optim.min_lr_ratio": value["min_lr_rate"]}
    rate = fields.get("learning_rate", 2e-5)
    if (
        isinstance(value, Mapping)
        and set(value) == {"min_lr"}
        and isinstance(value["min_lr"], float)
        and isinstance(rate, float)
    ):
        return {"optim.min_lr_ratio": value["min_lr"] / rate}
    return "only min_lr and min_lr_rate are settings here: optim.min_lr_ratio"


def betas(_: Any, fields: Fields) -> Outcome:
    return {"optim.betas": [fields.get("adam_beta1", 0.9), fields.get("adam_beta2", 0.999)]}


def max_steps(value: Any, _: Fields) -> Outcome:
    return {} if isinstance(value, int) and value <= 0 else {"train.max_steps": value}


def whole_steps(path: str) -> Turn:
    def turn(value: Any, _: Fields) -> Outcome:
        if isinstance(value, float) and 0 < value < 1:
            return "an interval is a number of steps here, not a share of the run"
        return {path: value}

    return turn


def bf16(value: Any, fields: Fields) -> Outcome:
    if value is None or on(fields.get("fp16")):
        return {}
    return {"train.precision": "bf16" if on(value) else "fp32"}


def fp16(value: Any, _: Fields) -> Outcome:
    return 'fp16 needs loss scaling, which is not here: use train.precision = "bf16" or "fp32"' if on(value) else {}


def max_length(value: Any, _: Fields) -> Outcome:
    return "every run has a longest sequence here" if value is None else {"sft.max_length": value}


def multiple(value: Any, _: Fields) -> Outcome:
    return {} if value in ("auto", None) else {"sft.pad_to_multiple_of": value}


def loss(value: Any, _: Fields) -> Outcome:
    return {"sft.loss_type": "nll" if value == "chunked_nll" else value}


def packing_strategy(value: Any, fields: Fields) -> Outcome:
    if not on(fields.get("packing")) and not on(fields.get("eval_packing")):
        return "it has no effect without packing"
    return {"sft.packing_strategy": "bfd_split" if value == "bfd-requeue" else value}


def output_dir(value: Any, _: Fields) -> Outcome:
    if not isinstance(value, str) or not value.strip("/ "):
        return "it is no path"
    folder, _slash, name = value.rstrip("/").rpartition("/")
    return {"run.output_dir": folder or ("/" if value.startswith("/") else "."), "run.run_name": name}


def run_name(value: Any, fields: Fields) -> Outcome:
    return "the run is named by the last part of output_dir" if fields.get("output_dir") else {"run.run_name": value}


def report_to(value: Any, _: Fields) -> Outcome:
    names = [value] if isinstance(value, str) else list(value or ())
    if names == ["all"]:
        return "trackers are named one by one here"
    return {"log.report_to": [each for each in names if each != "none"]}


def dataset(value: Any, fields: Fields) -> Outcome:
    if fields.get("datasets"):
        return "TRL ignores it where datasets is given"
    if value is None:
        return {}
    source: dict[str, Any] = {"path": value}
    if fields.get("dataset_config") is not None:
        source["name"] = fields["dataset_config"]
    found: dict[str, Any] = {"data.datasets": [{**source, "split": fields.get("dataset_train_split", "train")}]}
    if _evaluates(fields):
        found["data.eval_datasets"] = [{**source, "split": fields.get("dataset_test_split", "test")}]
    return found


def mixture(value: Any, _: Fields) -> Outcome:
    if not isinstance(value, list) or not all(isinstance(each, Mapping) for each in value):
        return "expected a list of data sets"
    known = ("path", "name", "data_dir", "data_files", "split", "fraction")
    entries = []
    for each in value:
        entry = {key: each[key] for key in known if each.get(key) is not None}
        if isinstance(entry.get("data_files"), str):
            entry["data_files"] = [entry["data_files"]]
        entries.append(entry)
    return {"data.datasets": entries}


def _evaluates(fields: Fields) -> bool:
    return str(fields.get("eval_strategy", fields.get("evaluation_strategy", "no"))) in ("steps", "epoch")


def eval_strategy(value: Any, fields: Fields) -> Outcome:
    if str(value) == "steps" and fields.get("eval_steps") is None:
        return {"eval.eval_steps": fields.get("logging_steps", 10)}
    return {}


def eval_steps(value: Any, fields: Fields) -> Outcome:
    if str(fields.get("eval_strategy", fields.get("evaluation_strategy", "no"))) != "steps":
        return "it has no effect without eval_strategy: steps"
    return whole_steps("eval.eval_steps")(value, fields)


def strategy(what: str) -> Turn:
    def turn(value: Any, _: Fields) -> Outcome:
        return {} if str(value) == "steps" else f"{what} by steps here, not by {value}"

    return turn


def metric(value: Any, _: Fields) -> Outcome:
    if not isinstance(value, str):
        return {}
    return {"eval.metric_for_best_model": value if value.startswith("eval_") else f"eval_{value}"}


def resume(value: Any, _: Fields) -> Outcome:
    if value is None or value is False or value == "false":
        return {}
    return {"checkpoint.resume": "auto" if on(value) else value}


def use_cpu(value: Any, _: Fields) -> Outcome:
    return {"env.CUDA_VISIBLE_DEVICES": ""} if on(value) else {}


def sampling(value: Any, _: Fields) -> Outcome:
    if value == "sequential":
        return {"data.shuffle": False}
    return {} if value == "random" else "rows of like length go together by sft.packing"


def fsdp(value: Any, _: Fields) -> Outcome:
    if not value or value == "false":
        return {}
    words = value if isinstance(value, str) else ""
    return {"distributed.strategy": "fsdp"} | ({"distributed.fsdp_cpu_offload": True} if "offload" in words else {})


def fsdp_config(value: Any, _: Fields) -> Outcome:
    known = {
        "reshard_after_forward": "distributed.reshard_after_forward",
        "cpu_offload": "distributed.fsdp_cpu_offload",
    }
    if not isinstance(value, Mapping) or not value:
        return "name its settings in [distributed]"
    plain = {key.removeprefix("fsdp_"): each for key, each in value.items()}
    found: dict[str, Any] = {known[key]: each for key, each in plain.items() if key in known}
    return found or "blocks are wrapped by themselves here; nothing of it is a setting"


def model_kwargs(value: Any, _: Fields) -> Outcome:
    """The keyword arguments, but for those that are settings of their own here."""
    if not isinstance(value, Mapping):
        return {} if value is None else "expected a mapping"
    own = {"attn_implementation", "dtype", "torch_dtype", "revision", "trust_remote_code"}
    found: dict[str, Any] = {}
    for key in own & set(value):
        name = "dtype" if key == "torch_dtype" else key
        found[f"model.{name}"] = value[key]
    rest = {key: each for key, each in value.items() if key not in own}
    return found | ({"model.model_init_kwargs": rest} if rest else {})


def target_modules(value: Any, _: Fields) -> Outcome:
    """peft's word for what none means here."""
    return {} if value in (None, "all-linear", ["all-linear"]) else {"peft.lora_target_modules": value}


def attention(value: Any, _: Fields) -> Outcome:
    ours = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")
    if value is None:
        return {}
    return {"model.attn_implementation": value} if value in ours else f"{value} is no choice here: auto finds one"


def nothing(_: Any, __: Fields) -> Outcome:
    """Part of what another field makes."""
    return {}


def warmup_ratio(value: Any, fields: Fields) -> Outcome:
    if fields.get("warmup_steps"):
        return "warmup_steps is given too, and counts"
    return {"optim.warmup_steps": value}


def only(wanted: Any, otherwise: str) -> Turn:
    """Carried over as nothing where it says what happens anyway."""

    def turn(value: Any, _: Fields) -> Outcome:
        same = on(value) if wanted is True else value in (wanted, None, "false" if wanted is False else wanted)
        return {} if same else otherwise

    return turn
