"""Rules across leaves: each inert setting is an error by slip and a note on purpose; a default never is either."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sftctl.config import conflicts, rules
from sftctl.config.leaves import find, leaves
from sftctl.config.resolve import resolve
from sftctl.errors import ConfigError

pytestmark = pytest.mark.usefixtures("folder")

VALUES: dict[str, Any] = {
    "sft.packing_strategy": "wrapped",
    "sft.truncation_mode": "keep_end",
    "sft.last_turn_only_loss": True,
    "sft.eval_packing": False,
    "peft.lora_r": 64,
    "peft.lora_alpha": 64,
    "peft.lora_dropout": 0.1,
    "peft.lora_target_modules": ["q_proj"],
    "peft.lora_target_parameters": ["experts"],
    "peft.lora_modules_to_save": ["lm_head"],
    "peft.use_rslora": True,
    "peft.use_dora": True,
    "peft.bnb_4bit_quant_type": "fp4",
    "peft.use_bnb_nested_quant": True,
    "peft.bnb_4bit_quant_storage": "uint8",
    "model.model_init_kwargs": {"a": 1},
    "model.revision": "v1",
    "data.stopping_strategy": "all_exhausted",
    "train.num_train_epochs": 1.0,
    "optim.warmup_steps": 0.1,
    "optim.min_lr_ratio": 0.1,
    "optim.betas": [0.9, 0.95],
    "optim.epsilon": 1e-6,
    "eval.generate_samples": 4,
    "eval.eval_on_start": True,
    "eval.early_stopping_patience": 2,
    "eval.load_best_model_at_end": True,
    "eval.eval_steps": 10,
    "eval.per_device_eval_batch_size": 4,
    "eval.eval_samples": 10,
    "eval.max_new_tokens": 8,
    "log.project": "x",
    "distributed.hsdp_replicas": 2,
    "distributed.fsdp_cpu_offload": True,
    "distributed.reshard_after_forward": False,
}
"""A value that is not the default, for every leaf that can be idle."""

OFF: dict[str, dict[str, Any]] = {
    "sft.packing_strategy": {"sft.packing": True, "sft.packing_strategy": "bfd_split"},
    "model.init": {"model.init": "random"},
    "model.name_or_path": {"model.name_or_path": "./there"},
    "train.max_steps": {"train.max_steps": 10},
    "optim.lr_scheduler_type": {"optim.lr_scheduler_type": "constant"},
    "optim.optimizer": {"optim.optimizer": "sgd"},
}
"""How a switch is turned off where it is on by default."""

CASES = [(rule, path) for rule in rules.INERT for path in rule.paths]


def test_every_inert_leaf_has_a_value_here() -> None:
    assert {path for _, path in CASES} == set(VALUES)


SLIPS = [(rule, path) for rule, path in CASES if rule.switch not in OFF and rule.idle == "error" and "hsdp" not in path]


@pytest.mark.parametrize(("rule", "path"), SLIPS, ids=[path for _, path in SLIPS])
def test_a_setting_that_idles_by_slip_is_an_error(rule: rules.Inert, path: str) -> None:
    """Nobody says anything of the switch, which is off by default."""
    with pytest.raises(ConfigError) as error:
        resolve(overrides={path: VALUES[path]})
    assert [(problem.path, "has no effect: it needs" in problem.message) for problem in error.value.problems] == [
        (path, True)
    ]


@pytest.mark.parametrize(("rule", "path"), CASES, ids=[path for _, path in CASES])
def test_a_setting_that_idles_on_purpose_is_a_note(rule: rules.Inert, path: str) -> None:
    """The source that sets the leaf says of the switch that it is off; at its default a leaf is never reported."""
    off = OFF.get(rule.switch, {rule.switch: leaves()[rule.switch].default})
    if path.endswith("hsdp_replicas"):
        off = {"distributed.nproc_per_node": 2, "distributed.strategy": "ddp"}
    assert path in {note.path for note in resolve(overrides={**off, path: VALUES[path]}).notes}
    assert path not in {note.path for note in resolve(overrides={**off, path: leaves()[path].default}).notes}


def test_an_option_over_a_files_switch_is_a_slip(write: Callable[..., str]) -> None:
    """max_steps in the file, epochs by a later source: whoever typed it would wait for nothing."""
    file = write("run.toml", "[train]\nmax_steps = 100")
    with pytest.raises(
        ConfigError, match=r"train\.num_train_epochs: 1\.0 has no effect: it needs train\.max_steps unset"
    ):
        resolve([file], overrides={"train.num_train_epochs": 1.0})


def test_an_option_over_a_files_settings_is_on_purpose(write: Callable[..., str]) -> None:
    file = write("run.toml", "[train]\nnum_train_epochs = 1")
    resolved = resolve([file], overrides={"train.max_steps": 10})
    assert [note.path for note in resolved.notes] == ["train.num_train_epochs"]
    assert str(resolved.notes[0].related[0]) == "overrides"


def test_weights_and_fractions_follow_the_mixing(write: Callable[..., str]) -> None:
    file = write("run.toml", "[[data.datasets]]\npath = 'org/a'\nweight = 2.0")
    with pytest.raises(ConfigError, match=r"data\.datasets\[0\]\.weight: 2\.0 has no effect") as error:
        resolve([file])
    assert str(error.value.problems[0].origin) == "run.toml:3:10"
    assert resolve([file], overrides={"data.mixing": "interleave"}).notes == ()


@pytest.mark.parametrize(
    ("overrides", "path"),
    [
        ({"peft.use_peft": True, "peft.load_in_8bit": True, "peft.load_in_4bit": True}, "peft.load_in_8bit"),
        ({"peft.load_in_4bit": True}, "peft.load_in_4bit"),
        ({"model.init": "random", "model.architecture": {"hidden_size": 8}}, "model.architecture"),
        ({"eval.metric_for_best_model": "eval_exact_match"}, "eval.metric_for_best_model"),
        ({"sft.share_prefix": True, "sft.padding_free": False}, "sft.share_prefix"),
        ({"sft.share_prefix": True, "peft.use_peft": True, "peft.lora_dropout": 0.1}, "sft.share_prefix"),
        ({"data.test_split_size": 1.5}, "data.test_split_size"),
        ({"distributed.nnodes": 2}, "distributed.nnodes"),
        ({"distributed.node_rank": 1}, "distributed.node_rank"),
        ({"distributed.strategy": "none", "distributed.nproc_per_node": 2}, "distributed.strategy"),
        ({"distributed.nproc_per_node": 4, "distributed.hsdp_replicas": 3}, "distributed.hsdp_replicas"),
        ({"data.datasets": [{"path": "a", "fraction": 0.5}, {"path": "b"}]}, "data.datasets[1]"),
    ],
)
def test_contradictions(overrides: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(overrides=overrides)
    assert path in {problem.path for problem in error.value.problems}


def test_every_path_of_a_rule_is_a_leaf() -> None:
    for rule in rules.INERT:
        assert all(find(path) for path in (*rule.paths, rule.switch))
    for conflict in conflicts.CONFLICTS:
        assert all(find(path) for path in conflict.paths)
