"""The final model: whole or not there, and loadable by Hugging Face's own classes."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from sftctl.engine.saving.final_model import save_final
from sftctl.errors import RunError


class NoTokenizer:
    def save_pretrained(self, path):
        (path / "tokenizer_config.json").write_text("{}")


class FailingTokenizer:
    def save_pretrained(self, path):
        raise OSError(28, "No space left on device")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def test_it_loads_with_the_auto_classes(tmp_path, model):
    tokenizers = pytest.importorskip("sftctl.engine.model.tokenizer")
    tokenizer = tokenizers.load_tokenizer(
        "bytes", revision="main", trust_remote_code=False, chat_template=None, eos_token=None
    )
    save_final(model, tokenizer, tmp_path / "final")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    AutoTokenizer.from_pretrained(tmp_path / "final")
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_other_weights_can_be_saved_than_the_models_own(tmp_path, model):
    masters = {name: torch.full_like(tensor, 2.0) for name, tensor in model.state_dict().items()}
    save_final(model, NoTokenizer(), tmp_path / "final", state_dict=masters)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    assert all((parameter == 2.0).all() for parameter in loaded.parameters())


def test_what_fails_leaves_the_old_one(tmp_path, model):
    final = tmp_path / "final"
    final.mkdir()
    (final / "old").touch()
    with pytest.raises(RunError, match=r"cannot write .*final: the disk is full"):
        save_final(model, FailingTokenizer(), final)
    assert [path.name for path in tmp_path.rglob("*")] == ["final", "old"]


def test_a_full_disk_leaves_nothing(tiny_disk, model):
    big = {name: torch.zeros(1 << 19) for name in ("a", "b")}
    with pytest.raises(RunError, match="the disk is full"):
        save_final(model, NoTokenizer(), tiny_disk / "final", state_dict=big)
    assert list(tiny_disk.iterdir()) == []


def test_a_new_one_replaces_the_old(tmp_path, model):
    final = tmp_path / "final"
    final.mkdir()
    (final / "old").touch()
    save_final(model, NoTokenizer(), final)
    assert (final / "model.safetensors").exists()
    assert not (final / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
