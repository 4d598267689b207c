"""Every field of TRL's has a place or a reason, and what a file of TRL's names is what the imported file loads as."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sftctl
from sftctl.config import trl
from sftctl.config.leaves import leaves
from sftctl.config.suggest import for_key
from sftctl.config.trl_import import import_trl
from sftctl.errors import ConfigError

pytestmark = pytest.mark.usefixtures("folder")

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "trl.md"
FIELDS_OF_TRL = Path(__file__).with_name("trl_1_16_fields.json")


def test_every_field_of_trl_is_mapped() -> None:
    """The names were listed from TRL 1.16 by dataclasses.fields."""
    for source, names in json.loads(FIELDS_OF_TRL.read_text()).items():
        for name in names:
            assert name in trl.FIELDS, f"{source}.{name}"


def test_no_field_is_mapped_that_trl_does_not_have() -> None:
    known = {name for names in json.loads(FIELDS_OF_TRL.read_text()).values() for name in names}
    for name, field in trl.FIELDS.items():
        assert (name in known) != (field.source == "earlier"), name


def test_every_field_goes_to_leaves_or_has_a_reason() -> None:
    for name, field in trl.FIELDS.items():
        assert field.to or field.why, name
        for path in field.to:
            assert path in leaves() or path.startswith("env."), (name, path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dataset_name", "TRL's dataset_name is data.datasets and data.eval_datasets here"),
        ("use_cpu", "TRL's use_cpu is env.CUDA_VISIBLE_DEVICES here"),
        ("bf16", "TRL's bf16 is train.precision here"),
        ("neftune_noise_alpha", "TRL's neftune_noise_alpha has no counterpart: NEFTune noise is not here"),
    ],
)
def test_suggestions_know_the_names(name: str, expected: str) -> None:
    assert for_key("train", name) == expected


FILE = """\
# a real one
model_name_or_path: org/model
model_init_kwargs:
  attn_implementation: sdpa
  use_safetensors: true
dtype: bfloat16
dataset_name: org/rows
dataset_config: main
eval_strategy: steps
eval_steps: 50
learning_rate: 1e-4
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs: {min_lr_rate: 0.1}
warmup_ratio: 0.03
adam_beta2: 0.95
num_train_epochs: 2
max_steps: -1
per_device_train_batch_size: 4
packing: yes
packing_strategy: bfd-requeue
max_length: 2048
loss_type: chunked_nll
bf16: true
gradient_checkpointing: off
use_peft: on
lora_target_modules: [q_proj, v_proj]
output_dir: out/run-1
report_to: wandb
seed: 7
env: {OMP_NUM_THREADS: 4}
use_cpu: true
optim: adamw_torch
metric_for_best_model: loss
"""


def test_a_file_is_carried_over(write: Callable[..., str], folder: Path) -> None:
    imported = import_trl(write("trl.yaml", FILE))
    assert imported.left == ()
    bundle = sftctl.load(write("ours.toml", imported.text))
    assert bundle.model.name_or_path == "org/model"
    assert bundle.model.attn_implementation == "sdpa"
    assert bundle.model.model_init_kwargs == {"use_safetensors": True}
    assert bundle.model.dtype == "bfloat16"
    assert [(each.path, each.name, each.split) for each in bundle.data.datasets] == [("org/rows", "main", "train")]
    assert [(each.path, each.name, each.split) for each in bundle.data.eval_datasets] == [("org/rows", "main", "test")]
    assert bundle.eval.eval_steps == 50
    assert bundle.optim.learning_rate == 1e-4
    assert (bundle.optim.lr_scheduler_type, bundle.optim.min_lr_ratio) == ("cosine", 0.1)
    assert (bundle.optim.warmup_steps, bundle.optim.betas) == (0.03, (0.9, 0.95))
    assert (bundle.train.num_train_epochs, bundle.train.max_steps) == (2.0, None)
    assert (bundle.sft.packing, bundle.sft.packing_strategy, bundle.sft.max_length) == (True, "bfd_split", 2048)
    assert (bundle.sft.loss_type, bundle.train.precision) == ("nll", "bf16")
    assert bundle.train.gradient_checkpointing is False
    assert bundle.peft.use_peft is True
    assert bundle.peft.lora_target_modules == ("q_proj", "v_proj")
    assert (bundle.run.output_dir, bundle.run.run_name, bundle.run.seed) == (str(folder / "out"), "run-1", 7)
    assert bundle.log.report_to == ("wandb",)
    assert bundle.env == {"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": ""}
    assert bundle.eval.metric_for_best_model == "eval_loss"


def test_a_command_line_is_carried_over(write: Callable[..., str]) -> None:
    file = write(
        "train.sh",
        "#!/bin/bash\naccelerate launch -m trl sft \\\n  --model_name_or_path org/model \\\n"
        "  --dataset_name 'org/rows' \\\n"
        "  --learning_rate=3e-4 --packing --no_gradient_checkpointing \\\n"
        "  --lora_target_modules q_proj v_proj --use_peft # the adapter\n",
    )
    imported = import_trl(file)
    assert imported.left == ()
    bundle = sftctl.load(write("ours.toml", imported.text))
    assert (bundle.model.name_or_path, bundle.optim.learning_rate) == ("org/model", 3e-4)
    assert (bundle.sft.packing, bundle.train.gradient_checkpointing) == (True, False)
    assert bundle.peft.lora_target_modules == ("q_proj", "v_proj")
    assert bundle.data.datasets[0].path == "org/rows"


def test_a_mixture_is_carried_over(write: Callable[..., str]) -> None:
    file = write(
        "trl.yaml",
        "datasets:\n  - {path: org/a, fraction: 0.7, data_files: a.jsonl}\n"
        "  - {path: org/b, fraction: 0.3, split: test}\n"
        "test_split_size: 0.1\n",
    )
    bundle = sftctl.load(write("ours.toml", import_trl(file).text))
    assert [(each.path, each.fraction, each.split) for each in bundle.data.datasets] == [
        ("org/a", 0.7, "train"),
        ("org/b", 0.3, "test"),
    ]
    assert bundle.data.datasets[0].data_files == ("a.jsonl",)
    assert bundle.data.test_split_size == 0.1


def test_what_is_left_out_is_named_by_line_and_as_a_comment(write: Callable[..., str]) -> None:
    file = write(
        "trl.yaml",
        "learning_rate: 1e-4\nneftune_noise_alpha: 5\nlerning_rate: 3\nseed: 1.5\nfp16: true\nsave_strategy: epoch",
    )
    imported = import_trl(file)
    assert [(problem.origin.line, problem.path) for problem in imported.left] == [
        (2, "neftune_noise_alpha"),
        (3, "lerning_rate"),
        (4, "run.seed"),
        (5, "fp16"),
        (6, "save_strategy"),
    ]
    assert "#   line 2: neftune_noise_alpha: 5 is not carried over: NEFTune noise is not here" in imported.text
    assert "did you mean 'learning_rate'?" in imported.text
    assert sftctl.load(write("ours.toml", imported.text)).optim.learning_rate == 1e-4


def test_what_is_refused_here_is_left_out_so_that_the_file_loads(write: Callable[..., str]) -> None:
    imported = import_trl(write("trl.yaml", "lora_r: 64\nseed: 3"))  # idle without use_peft, which TRL ignores
    assert [problem.path for problem in imported.left] == ["peft.lora_r"]
    assert sftctl.load(write("ours.toml", imported.text)).run.seed == 3


def test_paths_are_relative_to_where_the_file_will_lie(write: Callable[..., str], folder: Path) -> None:
    write("model/config.json", "{}")
    file = write("trl.yaml", "model_name_or_path: model\ndataset_name: rows.jsonl")
    imported = import_trl(file, target="configs/ours.toml")
    write("configs/ours.toml", imported.text)
    bundle = sftctl.load("configs/ours.toml")
    assert bundle.model.name_or_path == str(folder / "model")
    assert bundle.data.datasets[0].path == str(folder / "rows.jsonl")


@pytest.mark.parametrize("content", ["- a", "a: [", "learning_rate", b"\xff\xfe"])
def test_what_is_no_file_of_trls(write: Callable[..., str], content: str | bytes) -> None:
    with pytest.raises(ConfigError):
        import_trl(write("trl.yaml", content))


SAME = [
    (name, leaves()[field.to[0]])
    for name, field in trl.FIELDS.items()
    if field.turn is None and field.to and leaves()[field.to[0]].base in (int, float, bool)
]


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    chosen=st.lists(st.sampled_from(SAME), min_size=1, max_size=5, unique_by=lambda pair: pair[1].path),
    value=st.integers(1, 1),
)
def test_what_a_file_names_is_what_loads(
    write: Callable[..., str], chosen: list[tuple[str, object]], value: int
) -> None:
    """For fields that mean the same here: each is what it said, or is named as left out."""
    content = "".join(f"{name}: {'true' if leaf.base is bool else value}\n" for name, leaf in chosen)
    imported = import_trl(write("trl.yaml", content))
    bundle = sftctl.load(write("ours.toml", imported.text))
    left = {problem.path for problem in imported.left}
    for _, leaf in chosen:
        if leaf.path not in left:
            assert getattr(getattr(bundle, leaf.group), leaf.name) == (True if leaf.base is bool else value)


def test_the_page_of_the_reference_is_made_from_the_mapping() -> None:
    """After a change of the mapping: WRITE_REFERENCE=1 pytest tests/config/test_trl.py"""
    if os.environ.get("WRITE_REFERENCE"):
        PAGE.write_text(trl.page())
    assert PAGE.read_text() == trl.page()
    for name in trl.FIELDS:
        assert f"| `{name}` |" in trl.page()
