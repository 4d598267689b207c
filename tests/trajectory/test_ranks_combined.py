"""What can be combined with several processes: streams, compiled blocks, adapters, every optimiser.

Each is held against the same on one process, by the contract of test_ranks.py, and by the weights at the end.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from over_ranks import (
    ONE,
    STOP_AFTER_SEVEN,
    THREE,
    TIED,
    TWO,
    Run,
    assert_same_curve,
    assert_same_weights,
    curve,
    runner,
)
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file

from sftctl.cli.app import main
from sftctl.engine.model.loading import load_model
from sftctl.engine.model.tokenizer import load_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft's own use of it

DDP = [*TWO, "--strategy=ddp"]
MODEL, ADAPTER = "final/model.safetensors", "final/adapter_model.safetensors"


@pytest.fixture(scope="module")
def run(launcher: Any, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return runner(launcher, config, tmp_path_factory.mktemp("runs"), *TIED, "--save-final")


def trained(run: Run, name: str, *options: str) -> Path:
    code, said, path = run(name, *options)
    assert code == 0, said
    return path


STREAM = ["--streaming", "--packing"]


@pytest.mark.parametrize("cut", [TWO, pytest.param(DDP, marks=pytest.mark.slow)], ids=["fsdp", "ddp"])
def test_a_stream_is_shared_out(cut: list[str], run: Run) -> None:
    """Each rank reads all of a window and trains on its rows; the windows go round, since 24 rows are one step."""
    alone = trained(run, "stream", *STREAM)
    path = trained(run, f"stream-{cut[-1]}", *STREAM, *cut)
    assert_same_curve(path, alone)
    assert_same_weights(path / MODEL, alone / MODEL)


@pytest.mark.slow
def test_a_stream_goes_on_with_another_number_of_ranks(run: Run) -> None:
    alone = trained(run, "whole-stream", *STREAM)
    assert run("cut-stream", *STREAM, *TWO, patch=STOP_AFTER_SEVEN)[0] == 3
    path = trained(run, "cut-stream", *STREAM, *THREE)
    assert_same_curve(path, alone)
    assert_same_weights(path / MODEL, alone / MODEL)


KEPT = {
    "selective checkpointing, offloading": [*TWO, "--gradient-checkpointing=selective", "--activation-offloading"],
    "ddp, full checkpointing, offloading": [*DDP, "--gradient-checkpointing=true", "--activation-offloading"],
    "compiled": [*TWO, "--torch-compile"],
    "compiled, ddp, full checkpointing": [*DDP, "--torch-compile", "--gradient-checkpointing=true"],
    "compiled, selective checkpointing": [*TWO, "--torch-compile", "--gradient-checkpointing=selective"],
}


@pytest.mark.slow
@pytest.mark.parametrize("kept", KEPT)
def test_what_trades_speed_for_memory(kept: str, run: Run) -> None:
    if "compile" in kept and shutil.which("g++") is None:
        pytest.skip("compiling for a CPU needs a C++ compiler")
    alone = trained(run, "kept")
    path = trained(run, kept.replace(" ", "-"), *KEPT[kept])
    assert_same_curve(path, alone)
    assert_same_weights(path / MODEL, alone / MODEL)


# ---------------------------------------------------------------------- optimisers

SIZE = ["--set", "model.architecture.hidden_size=64"]  # of 4,096 numbers each, from which on bitsandbytes takes 8 bits
OPTIMIZERS = {
    "sgd": ["--optimizer=sgd", "--learning-rate=0.1"],
    "muon": ["--optimizer=muon"],
    "adafactor": ["--optimizer=adafactor"],
    "adamw_8bit": ["--optimizer=adamw_8bit", *SIZE],
}
TOLERANCE = {"adamw_8bit": 1e-3}  # a state on the edge between two of 256 values falls to the other side


def slow_but(name: str, *fast: str) -> list[Any]:
    return [pytest.param(each, marks=[] if each in fast else pytest.mark.slow) for each in name.split()]


@pytest.mark.parametrize("optimizer", slow_but("sgd muon adafactor adamw_8bit", "muon", "adafactor"))
@pytest.mark.parametrize("cut", slow_but("fsdp ddp", "fsdp"))
def test_every_optimiser_makes_the_same_step(optimizer: str, cut: str, run: Run) -> None:
    """Muon and Adafactor look at whole matrices, AdamW in 8 bits at blocks of 256 numbers."""
    if optimizer == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("needs bitsandbytes")
    alone = trained(run, optimizer, *OPTIMIZERS[optimizer])
    path = trained(run, f"{optimizer}-{cut}", *OPTIMIZERS[optimizer], *(TWO if cut == "fsdp" else DDP))
    assert_same_curve(path, alone)
    assert_same_weights(path / MODEL, alone / MODEL, atol=TOLERANCE.get(optimizer, 5e-5))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["muon", "adafactor", "adamw_8bit"])
@pytest.mark.parametrize(("before", "after"), [(ONE, TWO), (TWO, ONE), (TWO, THREE)], ids=["1-2", "2-1", "2-3"])
def test_states_go_over_to_another_number_of_ranks(
    optimizer: str, before: list[str], after: list[str], run: Run, request: pytest.FixtureRequest
) -> None:
    if optimizer == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("needs bitsandbytes")
    alone = trained(run, optimizer, *OPTIMIZERS[optimizer])
    name = f"states-{request.node.callspec.id}"
    assert run(name, *OPTIMIZERS[optimizer], *before, patch=STOP_AFTER_SEVEN)[0] == 3
    path = trained(run, name, *OPTIMIZERS[optimizer], *after)
    assert_same_curve(path, alone)
    assert_same_weights(path / MODEL, alone / MODEL, atol=TOLERANCE.get(optimizer, 5e-5))


# ---------------------------------------------------------------------- adapters


@pytest.fixture(scope="module")
def adapt(launcher: Any, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An adapter on a base of its own, without dropout: ranks draw other random numbers than one process."""
    folder = tmp_path_factory.mktemp("adapters")
    tokenizer = load_tokenizer("bytes", revision="main", trust_remote_code=False, chat_template=None, eos_token=None)
    base = load_model(
        name_or_path=None,
        init="random",
        architecture={"model_type": "llama", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
                      "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True},
        vocab_size=len(tokenizer),
        token_ids={"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None},
    )  # fmt: skip
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    config = folder / "adapter.toml"
    config.write_text(
        f"""
model.name_or_path = "{folder}/base"
data.datasets = [{{ path = "{rows}" }}]
peft.use_peft = true
peft.lora_dropout = 0
sft.max_length = 64
optim.learning_rate = 3e-3
train.max_steps = 20
train.per_device_train_batch_size = 24
train.precision = "fp32"
train.gradient_checkpointing = false
checkpoint.async_save = false
log.logging_steps = 1
"""
    )
    return runner(launcher, config, folder)


KINDS = {
    "lora": [],
    "rslora": ["--use-rslora"],
    "dora": ["--use-dora"],
    "embeddings": ["--lora-modules-to-save=embed_tokens"],
}


@pytest.mark.parametrize("kind", slow_but("lora rslora dora embeddings", "dora"))
@pytest.mark.parametrize("cut", slow_but("fsdp ddp", "fsdp"))
def test_an_adapter_is_the_one_of_a_single_process(kind: str, cut: str, adapt: Run, tmp_path: Path) -> None:
    """The curve, what `final/` holds, and what comes out merged: of ours, and of peft's own `merge_and_unload`."""
    alone = trained(adapt, kind, *KINDS[kind])
    path = trained(adapt, f"{kind}-{cut}", *KINDS[kind], *(TWO if cut == "fsdp" else DDP))
    assert_same_curve(path, alone)
    assert_same_weights(path / ADAPTER, alone / ADAPTER)
    for name, each in (("path", path), ("alone", alone)):
        assert main(["export", str(each), "--merge", f"--output={tmp_path / name}"]) == 0
    merged = tmp_path / "path" / "model.safetensors"
    assert_same_weights(merged, tmp_path / "alone" / "model.safetensors")
    theirs = AutoPeftModelForCausalLM.from_pretrained(path / "final").merge_and_unload().state_dict()
    for name, weight in load_file(merged).items():
        assert torch.equal(weight, theirs[name]), name


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(ONE, TWO), (TWO, ONE)], ids=["1-2", "2-1"])
def test_an_adapter_goes_on_with_another_number_of_ranks(
    before: list[str], after: list[str], adapt: Run, request: pytest.FixtureRequest
) -> None:
    options = ["--use-dora", "--optimizer=muon", "--packing"]
    alone = trained(adapt, "dora-muon", *options)
    name = f"dora-muon-{request.node.callspec.id}"
    assert adapt(name, *options, *before, patch=STOP_AFTER_SEVEN)[0] == 3
    path = trained(adapt, name, *options, *after)
    assert_same_curve(path, alone)
    assert_same_weights(path / ADAPTER, alone / ADAPTER)


UNREFUSED = (
    "from sftctl.engine import assemble_model as module; module.refuse_without_bitsandbytes = lambda **given: None"
)
"""On a CPU users are refused; bitsandbytes computes there too."""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
@pytest.mark.parametrize("cut", ["fsdp", "ddp"])
@pytest.mark.parametrize(
    "bits", [["--load-in-8bit"], ["--load-in-4bit"], ["--load-in-4bit", "--bnb-4bit-quant-storage=bfloat16"]]
)
def test_a_quantised_base_is_whole_on_every_rank(
    bits: list[str], cut: str, adapt: Run, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id
    code, said, alone = adapt(f"alone-{name}", *bits, patch=UNREFUSED)
    assert code == 0, said
    code, said, path = adapt(name, *bits, *(TWO if cut == "fsdp" else DDP), patch=UNREFUSED)
    assert code == 0, said
    assert [each["loss"] for each in curve(path)] == pytest.approx([each["loss"] for each in curve(alone)], rel=1e-3)
