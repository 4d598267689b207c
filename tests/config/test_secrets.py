"""A secret shows in no output of the configuration, and a masked one loads as nothing said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import sftctl
from sftctl.config import diff, report, scaffold, secrets, show
from sftctl.config.resolve import resolve
from sftctl.config.sources.options import Assignment
from sftctl.config.trl_import import import_trl
from sftctl.errors import ConfigError

FILE = """\
[env]
HF_TOKEN = "sesame"
WANDB_API_KEY = "sesame"
MY_SECRET = "sesame"
DB_PASSWORD = "sesame"
OMP_NUM_THREADS = "4"
TOKENIZERS_PARALLELISM = "false"

[model]
name_or_path = "org/model"
model_init_kwargs = {token = "sesame", use_safetensors = true}
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (("env", "HF_TOKEN"), True),
        (("env", "aws_secret_access_key"), True),
        (("env", "APIKEY"), True),
        (("env", "PGPASSWORD"), True),
        (("env", "TOKENIZERS_PARALLELISM"), False),
        (("env", "PATH"), False),
        (("reward", "token"), True),
        (("model", "model_init_kwargs", "token"), True),
        (("model", "model_init_kwargs", "Token"), True),
        (("model", "eos_token"), False),
        (("model", "tokenizer"), False),
        (("eval", "max_new_tokens"), False),
        (("model", "architecture", "pad_token_id"), False),
    ],
)
def test_what_is_a_secret(path: tuple[str, ...], expected: bool) -> None:
    assert secrets.is_secret(path) is expected


def test_no_output_shows_one(write: Callable[..., str], folder: Path) -> None:
    resolved = resolve(
        [write("run.toml", FILE)],
        env={"SFTCTL_ENV__OTHER_TOKEN": "sesame"},
        options=[Assignment("--set", "set", None, "env.THIRD_KEY=sesame")],
        overrides={"env.FOURTH_SECRET": "sesame"},
    )
    other = resolve([write("other.toml", FILE.replace("sesame", "sesame2"))])
    outputs = [
        *(show.dump(resolved, format) for format in show.FORMATS),
        *(scaffold.scaffold(resolved.bundle, format) for format in ("toml", "yaml")),
        str(show.rows(resolved)),
        json.dumps(show.origins(resolved)),
        json.dumps(show.flat(resolved.bundle)),
        repr(resolved.bundle.env),
        str(diff.table(tuple(diff.changes(resolved, other)))),
        diff.to_json(tuple(diff.changes(resolved, other))),
        diff.to_patch(tuple(diff.changes(resolved, other)), "a", "b"),
    ]
    for output in outputs:
        assert "sesame" not in output
        assert "OMP_NUM_THREADS" in output or "env.HF_TOKEN" in output or "HF_TOKEN" in output
    assert resolved.bundle.env["HF_TOKEN"] == "sesame"
    assert resolved.bundle.model.model_init_kwargs["token"] == "sesame"


def test_no_origin_carries_one(write: Callable[..., str]) -> None:
    resolved = resolve([write("run.toml", FILE)], options=[Assignment("--set", "set", None, "env.A_TOKEN=sesame")])
    assert "sesame" not in str([node.origin for node in resolved.nodes.values()])


def test_the_repr_of_a_bundle_shows_none(write: Callable[..., str]) -> None:
    assert "sesame" not in repr(sftctl.load(write("run.toml", FILE)))


@pytest.mark.parametrize(
    "content",
    [
        '[env]\nHF_TOKEN = "sesame',
        "[env]\nHF_TOKEN = sesame",
        '[env]\nHF_TOKEN = "sesame"\nHF_TOKEN = "sesame"',
        'env = {HF_TOKEN = "sesame", A = 1, B_KEY = "sesame", C = 2}',
        '[env]\nHF_TOKEN = ["sesame"]',
        '[env]\nHF_TOKEN = {a = "sesame"}',
        '[model]\nmodel_init_kwargs = {token = "sesame", a = 2026-01-01}',
        '[model]\nmodel_init_kwargs.token = "sesame"\nnmae = 1',
        '[envs]\nHF_TOKEN = "sesame"',
        'HF_TOKEN = "sesame"',
    ],
)
def test_no_error_shows_one(write: Callable[..., str], content: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve([write("run.toml", content)])
    assert "sesame" not in report.render(error.value)
    assert "sesame" not in str(error.value)


@pytest.mark.parametrize("text", ["env.HF_TOKEN={", "env.HF_TOKEN=[sesame", "envs.HF_TOKEN=sesame", "run.token=sesame"])
def test_no_error_of_an_option_shows_one(folder: Path, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(options=[Assignment("--set", "set", None, text)])
    assert "sesame" not in report.render(error.value)


def test_no_note_shows_one(write: Callable[..., str]) -> None:
    content = '[model]\ninit = "random"\nmodel_init_kwargs = {token = "sesame"}'
    (note,) = resolve([write("run.toml", content)]).notes
    assert note.path == "model.model_init_kwargs"
    assert "sesame" not in report.render_notes([note])
    assert "****" in note.message


def test_columns_after_a_mask_still_mark_what_they_mark(write: Callable[..., str]) -> None:
    with pytest.raises(ConfigError) as error:
        resolve([write("run.toml", 'env = {HF_TOKEN = "a much longer sesame", A = 1}')])
    origin = error.value.problems[0].origin
    assert origin is not None
    assert origin.text == "env = {HF_TOKEN = ****, A = 1}"
    assert origin.text[origin.column - 1 : origin.end_column - 1] == "1"


def test_a_masked_file_says_nothing_about_its_secrets(write: Callable[..., str], folder: Path) -> None:
    bundle = sftctl.load(write("run.toml", FILE))
    (folder / "saved.toml").write_text(show.dump(bundle, "toml"))
    saved = sftctl.load("saved.toml")
    assert saved.env == {"OMP_NUM_THREADS": "4", "TOKENIZERS_PARALLELISM": "false"}
    assert saved.model.model_init_kwargs == {"use_safetensors": True}
    assert show.digest(saved) == show.digest(bundle)


def test_an_imported_file_holds_none(write: Callable[..., str]) -> None:
    file = write(
        "trl.yaml",
        "model_name_or_path: org/model\nenv: {HF_TOKEN: sesame}\nhub_token: sesame\nmodel_init_kwargs: {token: sesame}",
    )
    imported = import_trl(file)
    assert "sesame" not in imported.text
    assert "sesame" not in report.render_notes(imported.left)
