"""Adapters through the command line: what trains, what is kept, and who can load it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftctl.cli.app import main
from sftctl.engine.model.loading import load_model
from sftctl.engine.model.tokenizer import load_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft's own use of it

TIMES = {"tokens_per_second", "step_seconds", "peak_memory_bytes"}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
LINEARS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def save_base(folder: Path, **changes: Any) -> Path:
    tokenizer = load_tokenizer("bytes", revision="main", trust_remote_code=False, chat_template=None, eos_token=None)
    load_model(
        name_or_path=None,
        init="random",
        architecture={**LLAMA, **changes},
        vocab_size=len(tokenizer),
        token_ids={name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
        seed=3,
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def adapt(base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`sftctl train adapter.toml OPTIONS`, in this process; gives the run directory."""
    folder = tmp_path_factory.mktemp("runs")
    config = folder / "adapter.toml"
    config.write_text(
        f"""
model.name_or_path = "{base}"
data.datasets = [{{ path = "{rows}" }}]
peft.use_peft = true
sft.max_length = 64
optim.learning_rate = 3e-3
train.max_steps = 4
train.precision = "fp32"
train.gradient_checkpointing = false
checkpoint.async_save = false
log.logging_steps = 1
""",
        encoding="utf-8",
    )

    def run(*options: str, name: str = "run", code: int = 0) -> Path:
        assert main(["train", str(config), f"--output-dir={folder}", f"--run-name={name}", *options]) == code
        return folder / name

    return run


def records(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def logits_of(model: Any, tokenizer: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**tokenizer("12 + 30 = ", return_tensors="pt")).logits


@pytest.mark.parametrize("kind", [(), ("--use-rslora",), ("--use-dora",)], ids=["lora", "rslora", "dora"])
def test_an_adapter_trains_alone_and_pefts_classes_load_it(
    adapt: Callable[..., Path], base: Path, kind: tuple[str, ...]
) -> None:
    before = load_file(base / "model.safetensors")
    run = adapt("--lora-r=4", *kind, name="-".join(("kind", *kind)).replace("--", ""))
    losses = [record["loss"] for record in records(run)]
    assert losses[-1] < losses[0]
    config = json.loads((run / "final" / "adapter_config.json").read_text())
    assert {name.rpartition(".")[2] for name in config["target_modules"]} == LINEARS
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 32, 0.05)
    assert (config["use_rslora"], config["use_dora"]) == ("--use-rslora" in kind, "--use-dora" in kind)
    assert config["base_model_name_or_path"] == str(base)

    weights = load_file(run / "final" / "adapter_model.safetensors")
    assert all("lora_" in name for name in weights)
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())
    assert any(tensor.abs().max() > 0 for name, tensor in weights.items() if "lora_B" in name)

    tokenizer = AutoTokenizer.from_pretrained(run / "final")
    auto = AutoPeftModelForCausalLM.from_pretrained(run / "final")
    plain = AutoModelForCausalLM.from_pretrained(base)
    untouched = logits_of(plain, tokenizer)
    wrapped = PeftModel.from_pretrained(plain, run / "final")
    assert torch.equal(logits_of(auto, tokenizer), logits_of(wrapped, tokenizer))
    assert (logits_of(auto, tokenizer) - untouched).abs().max() > 1e-3
    after = load_file(base / "model.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in before)


def checkpoint_names(run: Path) -> set[str]:
    return set(json.loads((run / "checkpoints" / "step-2" / "index.json").read_text()))


@pytest.mark.parametrize(
    "options", [(), ("--use-dora", "--packing", "--optimizer=muon")], ids=["lora", "dora, packed, muon"]
)
def test_a_checkpoint_holds_the_adapter_and_a_resumed_run_is_the_unstopped_one(
    adapt: Callable[..., Path], options: tuple[str, ...]
) -> None:
    """Dropout on: the random generators go on too. Bit for bit, metrics and adapter."""
    name = f"resume{len(options)}"
    whole = adapt("--save-steps=2", *options, name=name)
    names = checkpoint_names(whole)
    assert names
    assert all("lora_" in name for name in names)
    resumed = adapt("--save-steps=2", *options, f"--resume={whole / 'checkpoints' / 'step-2'}", name=f"{name}-resumed")
    assert records(resumed) == records(whole)[2:]
    first, second = (load_file(run / "final" / "adapter_model.safetensors") for run in (whole, resumed))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_base_is_not_gone_on_with(
    adapt: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The checkpoint does not hold the base, so what became of it meanwhile would go unnoticed."""
    base = save_base(tmp_path / "base")
    options = (f"--model-name-or-path={base}", "--save-steps=2")
    cut = adapt(*options, name="base-cut")
    weights = load_file(base / "model.safetensors")
    save_file(
        {**weights, "model.norm.weight": weights["model.norm.weight"] * 2}, base / "model.safetensors", {"format": "pt"}
    )
    capsys.readouterr()
    adapt(*options, f"--resume={cut / 'checkpoints' / 'step-2'}", name="base-resumed", code=2)
    assert "the base model is not the one of" in capsys.readouterr().err


LAYOUTS = {
    "checkpointing": ("--gradient-checkpointing=true",),
    "selective": ("--gradient-checkpointing=selective",),
    "offloading": ("--activation-offloading",),
    "both": ("--gradient-checkpointing=true", "--activation-offloading"),
    "packing": ("--packing",),
    "padded": ("--no-padding-free",),
    "accumulation": ("--gradient-accumulation-steps=8",),
}


@pytest.fixture(scope="module")
def plain_layout(adapt: Callable[..., Path]) -> list[dict[str, Any]]:
    return records(adapt(*WHOLE, "--per-device-train-batch-size=24", name="layout"))


WHOLE = ("--lora-dropout=0", "--no-save-final", "--seed=5")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_and_gradient_do_not_depend_on_the_layout(
    adapt: Callable[..., Path], plain_layout: list[dict[str, Any]], layout: str
) -> None:
    rows = 3 if layout == "accumulation" else 24
    run = adapt(*WHOLE, f"--per-device-train-batch-size={rows}", *LAYOUTS[layout], name=f"layout-{layout}")
    assert len(records(run)) == len(plain_layout) == 4
    for here, there in zip(records(run), plain_layout, strict=True):
        assert here["loss"] == pytest.approx(there["loss"], rel=1e-5)
        assert here["grad_norm"] == pytest.approx(there["grad_norm"], rel=1e-4)
        assert here["grad_norm"] > 0


def test_in_bf16_the_adapter_keeps_float32_masters(adapt: Callable[..., Path]) -> None:
    run = adapt("--precision=bf16", name="bf16")
    weights = load_file(run / "final" / "adapter_model.safetensors")
    lora_A = next(tensor for name, tensor in weights.items() if "lora_A" in name)
    assert lora_A.dtype == torch.float32
    assert not torch.equal(lora_A, lora_A.bfloat16().float())
    assert json.loads((run / "environment.json").read_text())["head"]["fused"] is True


def test_modules_to_save_train_whole_and_stay_tied(adapt: Callable[..., Path], tmp_path: Path) -> None:
    base = save_base(tmp_path / "tied", tie_word_embeddings=True)
    run = adapt(f"--model-name-or-path={base}", "--lora-modules-to-save=embed_tokens", name="to-save")
    assert json.loads((run / "environment.json").read_text())["head"]["fused"] is True
    model = AutoPeftModelForCausalLM.from_pretrained(run / "final")
    tokenizer = AutoTokenizer.from_pretrained(run / "final")
    merged = model.merge_and_unload()
    embedding, head = merged.get_input_embeddings().weight, merged.get_output_embeddings().weight
    assert torch.equal(embedding, head)
    before = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    assert (embedding - before).abs().max() > 1e-4
    assert torch.isfinite(logits_of(merged, tokenizer)).all()


def test_experts_are_adapted_as_parameters(adapt: Callable[..., Path], tmp_path: Path) -> None:
    base = save_base(tmp_path / "moe", model_type="mixtral", num_local_experts=4, num_experts_per_tok=2)
    run = adapt(
        f"--model-name-or-path={base}",
        "--lora-target-modules=q_proj",
        "--lora-target-modules=v_proj",
        "--lora-target-parameters=experts.gate_up_proj",
        "--lora-target-parameters=experts.down_proj",
        "--lora-dropout=0",
        "--gradient-checkpointing=true",
        name="experts",
    )
    weights = load_file(run / "final" / "adapter_model.safetensors")
    moved = {
        name for name, tensor in weights.items() if "experts" in name and "lora_B" in name and tensor.abs().max() > 0
    }
    assert moved
    tokenizer = AutoTokenizer.from_pretrained(run / "final")
    assert torch.isfinite(logits_of(AutoPeftModelForCausalLM.from_pretrained(run / "final"), tokenizer)).all()


def test_quantised_weights_are_refused_without_cuda(
    adapt: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything loads: the first thing that is said after the tokenizer."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    adapt("--load-in-4bit", name="quantised", code=2)
    said = capsys.readouterr()
    assert "peft.load_in_4bit: 4-bit weights need a CUDA device, and this run computes on cpu" in said.err
    assert "prepare the rows" not in said.out


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("bits", [8, 4])
def test_on_cuda_an_adapter_learns_on_quantised_weights(adapt: Callable[..., Path], tmp_path: Path, bits: int) -> None:
    pytest.importorskip("bitsandbytes")
    base = save_base(tmp_path / "base", hidden_size=128, intermediate_size=256)
    run = adapt(f"--model-name-or-path={base}", f"--load-in-{bits}bit", "--max-steps=8", name=f"bits-{bits}")
    losses = [record["loss"] for record in records(run)]
    assert losses[-1] < losses[0]
    assert (run / "final" / "adapter_model.safetensors").is_file()
