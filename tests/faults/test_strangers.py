"""Files that a stranger made: a model, a recipe, a run directory, a checkpoint. None runs code or writes elsewhere.

Each holds something that would leave a mark, and the command line is run on it as a user would run it.
"""

from __future__ import annotations

import json
import os
import pickle

import pytest
from safetensors.torch import load_file


class Mark:
    """Pickled, it makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "mark"


@pytest.fixture
def model(tmp_path):
    """The folder of a small model without weights."""
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
              "num_attention_heads": 2, "vocab_size": 264}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def train(launcher, config, model, tmp_path, *words, patch=""):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'extends = ["{config}"]\n[model]\ninit = "pretrained"\nname_or_path = "{model}"\narchitecture = {{}}\n'
    )
    return launcher.run("train", str(recipe), "--output-dir", str(tmp_path), "--run-name=run", *words, patch=patch)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_model_with_pickled_weights_is_refused_and_not_unpickled(launcher, config, model, tmp_path, mark, name):
    (model / name).write_bytes(pickle.dumps(Mark(mark)))
    code, said = train(launcher, config, model, tmp_path)
    assert code == 2, said
    assert name in said
    assert "safetensors" in said
    assert "Traceback" not in said
    assert not mark.exists()
    pickle.loads((model / name).read_bytes())
    assert mark.exists(), "the mark would have been left"


CODE = """
import os
os.mkdir({mark!r})
from transformers import LlamaConfig
class Config(LlamaConfig):
    model_type = "strange"
"""

OWN_CACHE = """
import transformers.dynamic_module_utils as module
module.HF_MODULES_CACHE = {folder!r}
"""


@pytest.mark.parametrize("trusted", [False, True])
def test_the_code_of_a_model_runs_only_where_it_is_trusted(launcher, config, model, tmp_path, mark, trusted):
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(
        json.dumps({**settings, "model_type": "strange", "auto_map": {"AutoConfig": "strange.Config"}})
    )
    (model / "strange.py").write_text(CODE.format(mark=str(mark)))
    words = ["--dry-run", "--trust-remote-code" if trusted else "--no-trust-remote-code"]
    patch = OWN_CACHE.format(folder=str(tmp_path / "modules"))
    code, said = train(launcher, config, model, tmp_path, *words, patch=patch)
    assert code in ((0, 2) if trusted else (2,)), said
    assert "Traceback" not in said
    assert mark.exists() == trusted
    if not trusted:
        assert "trust_remote_code" in said


def test_a_pickle_in_a_checkpoint_is_not_looked_at(launcher, words, tmp_path, check, mark, never_stopped):
    run = tmp_path / "run"
    started = launcher.start(*words)
    started.wait_until(lambda: check.last_step(run) >= 3)
    started.send(9)
    started.wait()
    for name in (".metadata", "optimizer.pt", "training_args.bin", "random-0.pkl"):
        (run / "checkpoints" / f"step-{check.last_step(run)}" / name).write_bytes(pickle.dumps(Mark(mark)))
    code, said = launcher.run(*words)
    assert code == 0, said
    assert not mark.exists()
    check.same_run(run, never_stopped)
    assert load_file(run / "checkpoints" / "step-30" / "tensors-0.safetensors")


def test_an_object_of_yaml_is_not_made(launcher, config, tmp_path, mark):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"extends: [{config}]\nrun:\n  run_name: !!python/object/apply:os.mkdir [{mark}]\n")
    code, said = launcher.run("train", str(recipe))
    assert code == 2, said
    assert "tags are not read" in said
    assert not mark.exists()


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/b", "..", ".hidden"])
def test_a_recipe_cannot_lead_a_run_out_of_its_folder(launcher, config, tmp_path, name):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'extends = ["{config}"]\n[run]\nrun_name = "{name}"\noutput_dir = "runs"\n')
    code, said = launcher.run("train", str(recipe))
    assert code == 2, said
    assert "run.run_name" in said
    assert "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]


def test_a_link_in_a_run_directory_leads_nothing_out_of_it(launcher, words, tmp_path, check):
    run, precious = tmp_path / "run", tmp_path / "precious"
    started = launcher.start(*words)
    started.wait_until(lambda: check.last_step(run) >= 3)
    started.send(9)
    started.wait()
    (run / "checkpoints").rename(precious)
    (run / "checkpoints").symlink_to(precious)
    before = sorted(precious.rglob("*"))
    code, said = launcher.run(*words)
    assert code == 2, said
    assert f"{run}/checkpoints is a symbolic link, to '{precious}'" in said.replace("\n", " ")
    assert "Traceback" not in said
    assert sorted(precious.rglob("*")) == before
