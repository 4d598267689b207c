"""Mutated files, environments and options: never a traceback, a hang over a second, or an accepted unknown key.

A case is a valid configuration with its text mangled (characters, words, lines, quotes, indents moved, doubled,
dropped, replaced), or an unknown key put into it somewhere. Either it resolves or a ConfigError says what is
wrong; the report renders; the whole takes less than a second of this process's time.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable

import pytest

from sftctl.config import show
from sftctl.config.report import render
from sftctl.config.resolve import resolve
from sftctl.config.sources.options import Assignment
from sftctl.errors import ConfigError, Problem

pytestmark = pytest.mark.usefixtures("folder")

TOML = """\
extends = []
[run]
seed = 7
tags = ["a", "b"]  # words
[model]
name_or_path = "org/model"
architecture = {hidden_size = 64, rope = {theta = 1e6}}
[[data.datasets]]
path = "rows.jsonl"
columns = {prompt = "question"}
[[data.datasets]]
path = 'more.jsonl'
limit = 5
[optim]
learning_rate = 2e-5
betas = [0.9, 0.95]
max_grad_norm = "none"
[train]
gradient_checkpointing = "selective"
[env]
OMP_NUM_THREADS = "4"
"""
YAML = """\
extends: []
run:
  seed: 7
  tags: [a, b]  # words
model:
  name_or_path: org/model
  architecture: {hidden_size: 64, rope: {theta: 1e6}}
data:
  datasets:
    - path: rows.jsonl
      columns: {prompt: question}
    - path: more.jsonl
      limit: 5
optim:
  learning_rate: 2e-5
  betas: [0.9, 0.95]
  max_grad_norm: null
train:
  gradient_checkpointing: selective
env:
  OMP_NUM_THREADS: "4"
"""
JSON = """\
{"extends": [], "run": {"seed": 7, "tags": ["a", "b"]},
 "model": {"name_or_path": "org/model", "architecture": {"hidden_size": 64, "rope": {"theta": 1e6}}},
 "data": {"datasets": [{"path": "rows.jsonl", "columns": {"prompt": "question"}}, {"path": "more.jsonl", "limit": 5}]},
 "optim": {"learning_rate": 2e-5, "betas": [0.9, 0.95], "max_grad_norm": null},
 "train": {"gradient_checkpointing": "selective"}, "env": {"OMP_NUM_THREADS": "4"}}
"""
ENV = {
    "SFTCTL_OPTIM__LEARNING_RATE": "3e-5",
    "SFTCTL_RUN__TAGS": '["x", "y"]',
    "SFTCTL_OPTIM__BETAS": "0.9,0.95",
    "SFTCTL_MODEL__ARCHITECTURE": "{a = 1, b = [1, {c = 2}]}",
    "SFTCTL_ENV__A": "b",
}
OPTIONS = [
    Assignment("--learning-rate", "option", "optim.learning_rate", "1e-4"),
    Assignment("--tags", "option", "run.tags", "x"),
    Assignment("--betas", "option", "optim.betas", "0.9"),
    Assignment("--dataset", "option", "data.datasets", "a.jsonl"),
    Assignment("--architecture", "option", "model.architecture", "{a = 1}"),
    Assignment("--set", "set", None, "data.eval_datasets+=[{path='x.jsonl'}]"),
    Assignment("--set", "set", None, "model.model_init_kwargs.a.b=[1, {c = 'x'}]"),
    Assignment("--set", "set", None, "~optim.max_grad_norm"),
    Assignment("--set", "set", None, "run.run_name='a'"),
]
BITS = [
    *"[]{}()<>=:,.\"'#&*!|%@`~-+_\\/?$ \t\n\r\0",
    *("'''", '"""', "[[", "]]", "---", "...", "<<: *a", "&a ", "*a", "!!python/object:os.system", "\ufeff", "\u2028"),
    *("\x85", "\U0001f600", "é", "\x1b[31m", "null", "none", "None", "true", "no", "nan", "inf", "-inf", "1e999"),
    *("9" * 30, "9" * 5000, "0x", "1_0", "1979-05-27T07:32:00Z", "07:32:00", "extends", "plugins", "optim"),
    *("extends = 'run.toml'", "extends: run.yaml", "plugins = ['none']", "data.datasets", "= 1\n", ": 1\n"),
    *("[" * 60, "[" * 3000, "{a: " * 60, "{a=" * 60, "a." * 60, "{a=" * 2000, "'", '"', "\\u0000", "\\ud800"),
]


def mutate(text: str, chance: random.Random) -> str:
    """The text after one to four slips."""
    for _ in range(chance.randint(1, 4)):
        here, there = sorted((chance.randint(0, len(text)), chance.randint(0, len(text))))
        there = min(there, here + chance.choice((1, 3, 20)))
        kind = chance.randrange(7)
        if kind == 0:
            text = text[:here] + text[there:]
        elif kind == 1:
            text = text[:here] + chance.choice(BITS) + text[here:]
        elif kind == 2:
            text = text[:here] + chance.choice(BITS) + text[there:]
        elif kind == 3:
            text = text[:there] + text[here:there] + text[there:]
        else:
            lines = text.split("\n")
            line = chance.randrange(len(lines))
            if kind == 4:
                lines[line] = chance.choice((" ", "\t", "  ", "")) + lines[line].lstrip(" " * chance.randint(0, 4))
            elif kind == 5:
                lines.insert(chance.randrange(len(lines)), lines[line])
            else:
                lines.pop(line)
            text = "\n".join(lines)
    return text


def attempt(case: str, **sources: object) -> list[Problem]:
    """The problems of a case; fails for a traceback and for what takes over a second."""
    start = time.process_time()
    try:
        resolved = resolve(**sources)
        for format in show.FORMATS:
            show.dump(resolved, format)
        problems: list[Problem] = []
    except ConfigError as error:
        problems = list(error.problems)
        render(error)
    except Exception as error:  # what the test is for
        pytest.fail(f"{type(error).__name__}: {error}\n{case!r}")
    assert time.process_time() - start < 1, f"took too long: {case!r}"
    return problems


def run_files(count: int, seed: int, write: Callable[..., str]) -> None:
    chance = random.Random(seed)
    for _ in range(count):
        suffix, text = chance.choice((("toml", TOML), ("yaml", YAML), ("json", JSON)))
        mangled = mutate(text, chance)
        content = mangled.encode("utf-8", "surrogatepass" if chance.random() < 0.05 else "replace")
        attempt(mangled, files=[write(f"run.{suffix}", content)])


def run_environments(count: int, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(count):
        env = {}
        for name, text in chance.sample(list(ENV.items()), 2):
            name = mutate(name, chance) if chance.random() < 0.5 else name
            env[name] = mutate(text, chance) if chance.random() < 0.8 else text
        attempt(str(env), env=env)


def run_options(count: int, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(count):
        options = [each._replace(text=mutate(each.text or "", chance)) for each in chance.sample(OPTIONS, 3)]
        attempt(str(options), options=options)


def run_unknown_keys(count: int, seed: int, write: Callable[..., str]) -> None:
    """A key that is none of ours is put at a random place of a valid file; it must be among the problems."""
    chance = random.Random(seed)
    for _ in range(count):
        word = "zz" + "".join(chance.choice("abcdefgh_0") for _ in range(6))
        where = chance.choice(("", "run.", "model.", "optim.", "train.", "data.", "data.datasets."))
        value = chance.choice(("1", "'x'", "[1]", "{a = 1}", "true"))
        if where == "data.datasets.":
            text = f"[[data.datasets]]\npath = 'a'\n{word} = {value}"
        else:
            text = f"{where}{word} = {value}\n" + TOML if where in ("", "optim.") else f"{where}{word} = {value}"
            text = (
                text.replace("[optim]\n", "").replace("learning_rate = 2e-5\nbetas = [0.9, 0.95]\n", "")
                if where
                else text
            )
        problems = attempt(text, files=[write("run.toml", text)])
        assert any(word in problem.path for problem in problems), text


def test_a_few_hundred_slips(write: Callable[..., str]) -> None:
    run_files(300, 1, write)
    run_environments(60, 2)
    run_options(60, 3)
    run_unknown_keys(40, 4, write)


@pytest.mark.slow
def test_ten_thousand_slips(write: Callable[..., str]) -> None:
    seed = int(os.environ.get("SFTCTL_TEST_FUZZ_SEED", "20261124"))
    run_files(7000, seed, write)
    run_environments(1300, seed + 1)
    run_options(1300, seed + 2)
    run_unknown_keys(400, seed + 3, write)
