"""What someone probably meant: the hint below an error. Imported on the way to an error, never before.

In order of certainty: a leaf of that very name in another group; a name of TRL's or Transformers'; a common
short word; the nearest name in the group; the nearest anywhere; a leaf of which the word is a part.
"""

from __future__ import annotations

from collections.abc import Iterable

from sftctl.config.leaves import ENV, Leaf, by_flat, find, groups, leaves, show_choice
from sftctl.config.nearest import nearest

SHORT_WORDS = {
    "lr": "optim.learning_rate",
    "epochs": "train.num_train_epochs",
    "num_epochs": "train.num_train_epochs",
    "n_epochs": "train.num_train_epochs",
    "steps": "train.max_steps",
    "batch_size": "train.per_device_train_batch_size",
    "micro_batch_size": "train.per_device_train_batch_size",
    "train_batch_size": "train.per_device_train_batch_size",
    "eval_batch_size": "eval.per_device_eval_batch_size",
    "grad_accum": "train.gradient_accumulation_steps",
    "accumulation": "train.gradient_accumulation_steps",
    "gradient_accumulation": "train.gradient_accumulation_steps",
    "seq_len": "sft.max_length",
    "max_seq_len": "sft.max_length",
    "sequence_len": "sft.max_length",
    "cutoff_len": "sft.max_length",
    "sample_packing": "sft.packing",
    "pack": "sft.packing",
    "scheduler": "optim.lr_scheduler_type",
    "schedule": "optim.lr_scheduler_type",
    "lr_scheduler": "optim.lr_scheduler_type",
    "warmup": "optim.warmup_steps",
    "warmup_ratio": "optim.warmup_steps",
    "beta1": "optim.betas",
    "beta2": "optim.betas",
    "eps": "optim.epsilon",
    "clip_grad": "optim.max_grad_norm",
    "grad_clip": "optim.max_grad_norm",
    "rank": "peft.lora_r",
    "r": "peft.lora_r",
    "alpha": "peft.lora_alpha",
    "lora_rank": "peft.lora_r",
    "target_modules": "peft.lora_target_modules",
    "adapter": "peft.use_peft",
    "dataset": "data.datasets",
    "base_model": "model.name_or_path",
    "model": "model.name_or_path",
    "path": "model.name_or_path",
    "flash_attention": "model.attn_implementation",
    "attention": "model.attn_implementation",
    "template": "model.chat_template_path",
    "chat_template": "model.chat_template_path",
    "train_on_inputs": "sft.completion_only_loss",
    "compile": "train.torch_compile",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "output": "run.output_dir",
    "out": "run.output_dir",
    "name": "run.run_name",
    "save_every": "checkpoint.save_steps",
    "log_every": "log.logging_steps",
    "eval_every": "eval.eval_steps",
    "wandb": "log.report_to",
    "gpus": "distributed.nproc_per_node",
    "num_gpus": "distributed.nproc_per_node",
    "env_vars": ENV,
}


def for_key(group: str | None, name: str) -> str | None:
    """The hint for an unknown key of a group, or of the root."""
    if group is None and (guess := _group(name)):
        return guess
    home = _home(group, name)
    if home is not None:
        return home
    trl = _trl(name)
    if trl is not None:
        return trl
    target = _guess(group, name)
    if target is None:
        return _list_keys(group)
    if group is not None and target.group == group:
        return f"did you mean '{target.name}'?"
    return f"did you mean '{target.name}' in [{target.group}]?"


def for_path(path: str) -> str | None:
    """The hint for a path that is none: `optim.lr`, `learning_rate`, `optim`."""
    group, dot, name = path.partition(".")
    if not dot:
        leaf = by_flat().get(group)
        if leaf is not None:
            return f"its path is '{leaf.path}'"
        if group in groups():
            return f"'{group}' is a group: name a setting in it, such as '{_first(group)}'"
        return _trl(group) or _path_hint(_guess(None, group))
    if group not in groups():
        leaf = by_flat().get(name)
        near = leaf.path if leaf else nearest(path, leaves())
        return f"did you mean '{near}'?" if near else f"the groups are {', '.join(groups())}"
    home = by_flat().get(name)
    return _path_hint(home) or _trl(name) or _path_hint(_guess(group, name)) or _list_keys(group)


def for_option(spelling: str) -> str | None:
    """The hint for an unknown option: `--lerning-rate`, `--optim.lr`, `--dataset-name`."""
    word = spelling.lstrip("-").partition("=")[0].replace("-", "_")
    plain = word.removeprefix("no_")
    group, dot, name = plain.rpartition(".")
    if dot and group in groups() and (leaf := by_flat().get(name)):
        return f"did you mean '{leaf.options[0]}'?"
    trl = _trl(name)
    if trl is not None:
        return trl
    leaf = _guess(group or None, name)
    if leaf is None:
        return None
    return f"did you mean '{leaf.options[0 if dot else 1]}'?"


def for_env(name: str) -> str | None:
    """The hint for an unknown `SFTCTL_...` variable."""
    rest = name.upper().removeprefix("SFTCTL_").lower()
    group, separator, word = rest.partition("__")
    if not separator:
        leaf = by_flat().get(rest) or find(rest.replace("_", ".", 1)) or _guess(None, rest)
        return f"write {leaf.env}" if leaf else "a variable is named SFTCTL_GROUP__NAME"
    if group not in groups():
        leaf = by_flat().get(word)
        near = leaf.env if leaf else nearest(rest.upper(), [each.env for each in leaves().values()])
        near = near if near is None or near.startswith("SFTCTL_") else f"SFTCTL_{near}"
        return f"did you mean {near}?" if near else f"the groups are {', '.join(groups()).upper()}"
    stem, inner, _ = word.partition("__")
    table = find(f"{group}.{stem}")
    if inner and table is not None and table.is_table:
        return f"set the whole table: {table.env}='{{name = value}}'"
    leaf = by_flat().get(word) or _guess(group, word)
    return f"did you mean {leaf.env}?" if leaf else None


def for_choice(value: object, choices: Iterable[object]) -> str | None:
    """The hint for a value that is none of the choices."""
    if not isinstance(value, str):
        return None
    guess = nearest(value, [show_choice(each) for each in choices], cutoff=0.6)
    return f"did you mean '{guess}'?" if guess else None


def _group(name: str) -> str | None:
    leaf = by_flat().get(name) or next((each for each in leaves().values() if each.name == name), None)
    if leaf is not None:
        return f"it belongs in [{leaf.group}]: {leaf.path}"
    if name in SHORT_WORDS:
        return None
    guess = nearest(name, groups(), cutoff=0.6)
    return f"did you mean [{guess}]?" if guess else None


def _home(group: str | None, name: str) -> str | None:
    """A key in the wrong group: the right one."""
    leaf = by_flat().get(name) or next((each for each in leaves().values() if each.name == name), None)
    if leaf is None:
        return None
    if leaf.group == group:  # the flat name of one of its own: [model] model_name_or_path
        return f"did you mean '{leaf.name}'?"
    return f"it belongs in [{leaf.group}]" + (f", as '{leaf.name}'" if leaf.name != name else "")


def _trl(name: str) -> str | None:
    from sftctl.config.trl import hint  # the whole mapping of TRL's fields

    return hint(name)


def _guess(group: str | None, name: str) -> Leaf | None:
    if name in SHORT_WORDS:
        return find(SHORT_WORDS[name])
    own = {leaf.name: leaf for leaf in leaves().values() if leaf.group == group}
    for names in (own, {**{leaf.name: leaf for leaf in leaves().values()}, **by_flat()}):
        near = nearest(name, names, cutoff=0.75)
        if near is not None:
            return names[near]
    words = nearest(name, [word for word in SHORT_WORDS if len(word) > 4], cutoff=0.8)
    if words is not None:
        return find(SHORT_WORDS[words])
    for names in (own, dict(by_flat())):
        for each, leaf in names.items():
            if nearest(name, [word for word in each.split("_") if len(word) > 4], cutoff=0.8):
                return leaf
    return None


def _list_keys(group: str | None) -> str | None:
    if group is None:
        return f"the groups are {', '.join(groups())}"
    known = [leaf.name for leaf in groups()[group].leaves] if group in groups() else []
    return f"[{group}] has {', '.join(known)}" if known else None


def _first(group: str) -> str:
    known = groups()[group].leaves
    return known[0].path if known else f"{group}.NAME"


def _path_hint(leaf: Leaf | None) -> str | None:
    return f"did you mean '{leaf.path}'?" if leaf else None
