"""`sftctl export`: what comes out computes what the run's model does, and nothing that was there is lost."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from peft import AutoPeftModelForCausalLM
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftctl.cli.app import main
from sftctl.engine import export
from sftctl.engine.model.loading import load_model
from sftctl.engine.model.tokenizer import load_tokenizer
from sftctl.engine.saving import publish
from sftctl.runs.directory import attach

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft's own use of it

TOKEN = "hf_" + "x" * 34
CONFIG = """
data.datasets = [{{ path = "{folder}/rows.jsonl" }}]
sft.max_length = 32
optim.learning_rate = 3e-3
train.max_steps = 4
train.precision = "fp32"
checkpoint.save_steps = 2
run.output_dir = "{folder}"
"""
ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
RANDOM = 'model.tokenizer = "bytes"\nmodel.init = "random"\n' + "".join(
    f"model.architecture.{name} = {json.dumps(value)}\n" for name, value in ARCHITECTURE.items()
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs `whole` (all weights) and `adapter`, and their copies without a final model."""
    folder = tmp_path_factory.mktemp("export")
    rows = [{"prompt": f"{a} + {a} = ", "completion": f"{2 * a}"} for a in range(24)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.toml").write_text(RANDOM + CONFIG.format(folder=folder))
    tokenizer = load_tokenizer("bytes", revision="main", trust_remote_code=False, chat_template=None, eos_token=None)
    base = load_model(
        name_or_path=None,
        init="random",
        architecture=ARCHITECTURE,
        vocab_size=len(tokenizer),
        token_ids={"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None},
    )
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    adapter = f'model.name_or_path = "{folder}/base"\npeft.use_peft = true\npeft.use_dora = true\n'
    (folder / "adapter.toml").write_text(adapter + CONFIG.format(folder=folder))
    for name, config in (("whole", "run"), ("adapter", "adapter")):
        for final in (True, False):
            words = ["train", str(folder / f"{config}.toml"), f"--run-name={name}{'' if final else '-checkpoints'}"]
            assert main([*words, "--save-final" if final else "--no-save-final"]) == 0
    return folder


def logits_of(model: Any, folder: Path) -> torch.Tensor:
    ids = AutoTokenizer.from_pretrained(folder)("7 + 7 = ", return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**ids).logits


def exported(run: Path, output: Path, *options: str) -> torch.Tensor:
    assert main(["export", str(run), "-o", str(output), *options]) == 0
    return logits_of(AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32), output)


def test_a_final_model_is_exported_as_it_is(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logits = exported(folder / "whole", tmp_path / "new" / "model")
    final = folder / "whole" / "final"
    assert torch.equal(logits, logits_of(AutoModelForCausalLM.from_pretrained(final), final))
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "    from transformers import AutoModelForCausalLM",
        f'    model = AutoModelForCausalLM.from_pretrained("{tmp_path}/new/model")',
    ]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model"]


def test_a_checkpoint_serves_where_there_is_no_final_model(folder: Path, tmp_path: Path) -> None:
    """The two runs are the same to the last bit, so the last checkpoint is the final model."""
    from_checkpoint = exported(folder / "whole-checkpoints", tmp_path / "model")
    assert torch.equal(from_checkpoint, exported(folder / "whole", tmp_path / "final"))


@pytest.mark.parametrize(("best", "taken"), [(2, 2), (None, 4), (3, 4)])  # step 3 was never kept
def test_the_best_checkpoint_goes_before_the_newest(
    folder: Path, monkeypatch: pytest.MonkeyPatch, best: int | None, taken: int
) -> None:
    monkeypatch.setattr(export, "read_manifest", lambda path: SimpleNamespace(content={"best_step": best}))
    run = attach(folder / "whole-checkpoints")
    assert export.source_of(run).name == f"step-{taken}"


def test_another_dtype_is_written(folder: Path, tmp_path: Path) -> None:
    half = exported(folder / "whole", tmp_path / "half", "--dtype=bfloat16")
    with safe_open(tmp_path / "half" / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    whole = exported(folder / "whole", tmp_path / "whole")
    assert 0 < (half - whole).abs().max() < 0.1


@pytest.mark.parametrize("run", ["adapter", "adapter-checkpoints"])
def test_an_adapter_comes_alone_or_merged(folder: Path, tmp_path: Path, run: str) -> None:
    assert main(["export", str(folder / run), "-o", str(tmp_path / "adapter")]) == 0
    adapted = logits_of(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter"), tmp_path / "adapter")
    final = folder / "adapter" / "final"
    torch.testing.assert_close(adapted, logits_of(AutoPeftModelForCausalLM.from_pretrained(final), final))
    merged = exported(folder / run, tmp_path / "merged", "--merge")
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-5)
    base = logits_of(AutoModelForCausalLM.from_pretrained(folder / "base"), folder / "base")
    assert (merged - base).abs().max() > 1e-2
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    generation = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == AutoTokenizer.from_pretrained(folder / "base").eos_token_id


def refused(*words: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["export", *map(str, words)]) == 2
    return capsys.readouterr().err


def test_what_is_there_is_not_overwritten(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "model"
    exported(folder / "whole", output)
    (output / "mine").touch()
    assert f"{output} exists\n  = help: give another path with -o, or replace it with --force" in refused(
        folder / "whole", "-o", output, capsys=capsys
    )
    assert (output / "mine").exists()
    exported(folder / "whole", output, "--force")
    assert not (output / "mine").exists()
    home = tmp_path / "home"
    home.mkdir()
    (home / "letter").touch()
    assert f"{home} exists and is no model folder" in refused(folder / "whole", "-o", home, "--force", capsys=capsys)
    assert (home / "letter").exists()


def test_what_cannot_be_exported_is_said(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "trained all weights: it has no adapter to merge" in refused(folder / "whole", "--merge", capsys=capsys)
    assert "an adapter stays in float32" in refused(folder / "adapter", "--dtype=bfloat16", capsys=capsys)
    assert "is not a run directory" in refused(folder / "base", capsys=capsys)
    assert "is of --push" in refused(folder / "whole", "--public", capsys=capsys)
    empty = tmp_path / "empty"
    empty.mkdir()
    for name in ("state.json", "config.toml"):
        (empty / name).write_bytes((folder / "whole" / name).read_bytes())
    assert "has neither a final model nor a whole checkpoint" in refused(empty, capsys=capsys)
    assert not (empty / "export").exists()


def test_a_failing_disk_leaves_nothing(folder: Path, tiny_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tiny_disk / "filler").write_bytes(b"0" * 900_000)
    assert "the disk is full" in refused(folder / "whole", "-o", tiny_disk / "model", capsys=capsys)
    assert [path.name for path in tiny_disk.iterdir()] == ["filler"]


# ---------------------------------------------------------------------- the Hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """A Hub that takes everything, and what it was asked."""
    asked: list[tuple[str, Any]] = []

    class Api:
        endpoint = "https://huggingface.co"

        def whoami(self) -> dict[str, str]:
            return {"name": "me"}

        def create_repo(self, repo_id: str, **given: Any) -> None:
            asked.append(("create_repo", (repo_id, given["private"])))

        def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
            asked.append(("upload_folder", (repo_id, sorted(path.name for path in folder_path.iterdir()))))

    monkeypatch.setattr(publish, "HfApi", Api)
    monkeypatch.setattr(publish, "get_token", lambda: TOKEN)
    monkeypatch.setattr(publish, "cache_only", lambda: False)
    return asked


@pytest.mark.parametrize("public", [False, True])
def test_a_folder_is_pushed(
    folder: Path, tmp_path: Path, hub: list[tuple[str, Any]], public: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    exported(folder / "whole", tmp_path / "model", "--push=me/sums", *(["--public"] if public else []))
    (created, uploaded) = hub
    assert created == ("create_repo", ("me/sums", not public))
    assert uploaded[1][0] == "me/sums"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(uploaded[1][1])
    assert "pushed to https://huggingface.co/me/sums" in capsys.readouterr().out


def test_what_stops_a_push_is_found_before_anything_is_written(
    folder: Path, tmp_path: Path, hub: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    output = tmp_path / "model"

    def said(repo_id: str = "me/sums") -> str:
        text = refused(folder / "whole", "-o", output, f"--push={repo_id}", capsys=capsys)
        assert not output.exists()
        assert TOKEN not in text
        return text

    assert "'a//b' is not the name of a repository on the Hub" in said("a//b")
    assert "'sums' does not say whose it is" in said("sums")

    def refuse(api: Any) -> None:
        raise HfHubHTTPError(f"for {TOKEN}", response=SimpleNamespace(status_code=401, headers={}, request=TOKEN))

    with monkeypatch.context() as patch:
        patch.setattr(publish.HfApi, "whoami", refuse)
        assert "me/sums: the Hub refuses the token" in said()
    monkeypatch.setattr(publish, "cache_only", lambda: True)
    assert "the Hub cannot be reached (or HF_HUB_OFFLINE is set)" in said()
    monkeypatch.setattr(publish, "get_token", lambda: None)
    assert "there is no token to push with" in said()
