"""What is wrong with a model folder is said, and nothing in it runs or is filled up with random numbers."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sftctl.engine.model.loading import load_model, meta_model
from sftctl.engine.model.tokenizer import load_tokenizer
from sftctl.errors import ModelError
from tests.engine.model.tiny import TINY

WEIGHTS = "model.safetensors"
Change = Callable[[dict[str, torch.Tensor]], Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    load_model(name_or_path=None, init="random", architecture=TINY, vocab_size=40).save_pretrained(path)
    return path


def change_weights(folder: Path, change: Change) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def refused(folder: Path, **settings: Any) -> str:
    with pytest.raises(ModelError) as error:
        load_model(name_or_path=str(folder), **settings)
    (problem,) = error.value.problems
    assert problem.help, "every refusal says what to do"
    return f"{problem.path}: {problem.message}"


class Bomb:
    """Unpickling it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_pickled_weights_are_never_unpickled(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(pickle.dumps({"model.norm.weight": Bomb(tmp_path / "exploded")}))
    expected = f"model.name_or_path: {folder} has pickled weights only ({name}), which can run code when they are read"
    assert refused(folder) == expected
    assert not (tmp_path / "exploded").exists()
    pickle.loads((folder / name).read_bytes())
    assert (tmp_path / "exploded").exists(), "the bomb works"


def test_pickled_weights_beside_whole_ones_are_not_looked_at(folder: Path, tmp_path: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    load_model(name_or_path=str(folder))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("check", [load_model, meta_model])
def test_a_models_own_code_runs_only_where_it_was_asked_for(folder: Path, tmp_path: Path, check: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "homemade",
        "auto_map": {"AutoConfig": "homemade.Config", "AutoModelForCausalLM": "homemade.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    ran = tmp_path / "ran"
    (folder / "homemade.py").write_text(f"import pathlib\npathlib.Path({str(ran)!r}).touch()\n")
    with pytest.raises(ModelError) as error:
        check(name_or_path=str(folder))
    assert str(error.value) == (
        f"model.name_or_path: {folder} comes with Python code of its own; "
        "set model.trust_remote_code = true if you trust its author"
    )
    assert not ran.exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(folder: Path, share: float) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: int(share * len(whole))])
    assert refused(folder).startswith(f"model.name_or_path: {folder}/{WEIGHTS} is broken: ")
    with pytest.raises(ModelError, match="is broken"):
        meta_model(name_or_path=str(folder))


def test_a_file_that_is_no_safetensors_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert refused(folder).startswith(f"model.name_or_path: {folder}/{WEIGHTS} is broken: ")
    with pytest.raises(ModelError, match="is broken"):
        meta_model(name_or_path=str(folder))


@pytest.mark.parametrize("index", [b"{", b"[]", b'{"weight_map": 3}', b"{}"])
def test_an_index_that_is_none_is_refused(folder: Path, index: bytes) -> None:
    (folder / f"{WEIGHTS}.index.json").write_bytes(index)
    assert "is not an index of weights" in refused(folder)


def test_a_shard_that_is_not_there_is_named(folder: Path) -> None:
    model = load_model(name_or_path=str(folder))
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    shards[0].unlink()
    assert refused(folder) == (f"model.name_or_path: {folder} lacks 1 of {len(shards)} weight files: {shards[0].name}")


def test_another_shape_is_refused(folder: Path) -> None:
    change_weights(folder, lambda weights: weights.update({"model.norm.weight": torch.ones(31)}))
    assert refused(folder) == (
        f"model.name_or_path: {folder} has another shape for 1 of the model's weights: model.norm.weight"
    )


def test_a_config_of_another_size_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    assert "has another shape for 6 of the model's weights: model.layers.0.mlp.down_proj.weight" in refused(folder)


def test_a_missing_weight_is_refused_and_not_drawn(folder: Path) -> None:
    """Transformers would fill it with random numbers and warn."""
    change_weights(folder, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    assert refused(folder) == (
        f"model.name_or_path: {folder} lacks 1 of the model's weights: model.layers.1.mlp.up_proj.weight"
    )


def test_layers_that_the_config_does_not_have_are_refused(folder: Path) -> None:
    """Weights without a place in the model: it would be another model than the one that was saved."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    assert refused(folder) == (
        f"model.name_or_path: {folder} has 9 weights of layers that the model does not have: "
        "model.layers.1.input_layernorm.weight, model.layers.1.mlp.down_proj.weight, "
        "model.layers.1.mlp.gate_proj.weight and 6 more"
    )


def test_buffers_that_older_versions_saved_are_no_matter(folder: Path) -> None:
    """Llama checkpoints of 2023 carry each layer's rotary frequencies, which are computed now."""
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_weights(folder, lambda weights: weights.update({name: torch.ones(4)}))
    load_model(name_or_path=str(folder))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_another_dtype_become_the_masters_dtype(folder: Path, dtype: torch.dtype) -> None:
    change_weights(folder, lambda weights: weights.update({name: t.to(dtype) for name, t in weights.items()}))
    model = load_model(name_or_path=str(folder), dtype="float32")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    stored = load_file(folder / WEIGHTS)["model.norm.weight"]
    assert torch.equal(model.model.norm.weight, stored.float())


@pytest.mark.parametrize(("dtype", "name"), [(torch.int64, "I64"), (torch.bool, "BOOL")])
def test_weights_that_are_no_numbers_to_train_are_refused(folder: Path, dtype: torch.dtype, name: str) -> None:
    change_weights(folder, lambda weights: weights.update({key: t.to(dtype) for key, t in weights.items()}))
    assert f"has weights of {name}, which cannot be trained" in refused(folder)


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(folder: Path) -> None:
    tokenizer = load_tokenizer("bytes", revision="main", trust_remote_code=False, chat_template=None, eos_token=None)
    assert refused(folder, vocab_size=len(tokenizer)) == (
        f"model.tokenizer: the tokenizer has {len(tokenizer)} token ids and the model's embedding 40 rows"
    )


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ({"model_type": "t5", "d_model": 32}, "'t5' is not a causal language model"),
        ({"model_type": "vit"}, "'vit' is not a causal language model"),
        (
            {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
            "a bert model sees",
        ),
    ],
)
def test_models_that_are_not_causal_are_refused(architecture: dict[str, Any], expected: str) -> None:
    with pytest.raises(ModelError) as error:
        load_model(name_or_path=None, init="random", architecture=architecture, vocab_size=40)
    assert expected in str(error.value)


def test_an_encoder_decoders_folder_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", "d_model": 32}))
    assert refused(folder) == "model.architecture: 't5' is not a causal language model"
