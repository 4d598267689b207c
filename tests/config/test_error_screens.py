"""What a user sees: every bad input of the specification with its screen, in error_screens.md.

The file is the expectation. After a change of wording, look through what this writes, and commit it:

    SFTCTL_TEST_WRITE_SCREENS=1 pytest tests/config/test_error_screens.py
"""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path

import attrs
import pytest

from sftctl.config import recipes
from sftctl.config.report import render, render_notes
from sftctl.config.resolve import resolve
from sftctl.config.sources.options import Assignment
from sftctl.errors import ConfigError

SCREENS = Path(__file__).with_name("error_screens.md")


@attrs.frozen
class Case:
    """Files (content by name; the first one, or `given`, is resolved), environment, options, overrides."""

    title: str
    files: dict[str, str | bytes] = attrs.field(factory=dict)
    given: tuple[str, ...] | None = None
    env: dict[str, str] = attrs.field(factory=dict)
    options: tuple[Assignment, ...] = ()
    overrides: dict[str, object] | None = None


def option(spelling: str, path: str, text: str) -> Assignment:
    return Assignment(spelling, "option", path, text)


def put(text: str) -> Assignment:
    return Assignment("--set", "set", None, text)


def toml(title: str, content: str, **more: object) -> Case:
    return Case(title, {"run.toml": textwrap.dedent(content)}, **more)


def yaml(title: str, content: str, **more: object) -> Case:
    return Case(title, {"run.yaml": textwrap.dedent(content)}, **more)


CASES: dict[str, list[Case]] = {
    "Types": [
        toml("text for a flag", "[sft]\npacking = 'yes'"),
        toml("a number for a flag", "[sft]\npacking = 1"),
        toml("text for a whole number", "[run]\nseed = 'many'"),
        toml("a fraction for a whole number", "[run]\nseed = 1.5"),
        toml("true for a whole number", "[run]\nseed = true"),
        toml("text for a number", "[optim]\nlearning_rate = 'high'"),
        toml("true for a number", "[optim]\nlearning_rate = true"),
        toml("a number for text", "[data]\ndataset_text_field = 5"),
        toml("a list for text", "[data]\ndataset_text_field = ['text']"),
        toml("a date for text", "[run]\nrun_name = 2026-01-01"),
        toml("text for a list", "[run]\ntags = 'baseline'"),
        toml("text for a table", "[model]\narchitecture = 'llama'"),
        toml("a table for a list of tables", "[data.datasets]\npath = 'rows.jsonl'"),
        toml("text for an entry", "[data]\ndatasets = ['rows.jsonl']"),
        toml("a list of the wrong length", "[optim]\nbetas = [0.9, 0.99, 0.999]"),
        toml("a bad item of a list", "[optim]\nbetas = [0.9, 'x']"),
        toml("a quoted number", "[optim]\nlearning_rate = '2e-5'"),
        toml("a quoted flag", "[sft]\npacking = 'false'"),
        toml("a choice with a near miss", "[optim]\nlr_scheduler_type = 'cosin'"),
        toml("a choice in the wrong case", "[sft]\nloss_type = 'DFT'"),
        toml("a metric that no evaluation has", "[eval]\nmetric_for_best_model = 'eval_los'"),
        toml("a choice far from all", "[sft]\nloss_type = 'orpo'"),
        toml("a quoted true where true is a choice", "[train]\ngradient_checkpointing = 'true'"),
        toml("one where true is a choice", "[train]\ngradient_checkpointing = 1"),
    ],
    "Values": [
        toml("not a number", "[optim]\nlearning_rate = nan"),
        toml("infinity", "[optim]\nlearning_rate = inf"),
        toml("a number too large to be finite", "[optim]\nlearning_rate = 1e999"),
        toml("a huge whole number", "[train]\nmax_steps = 100000000000000000000000"),
        toml("a number with too many digits", "[train]\nmax_steps = " + "9" * 5000),
        toml("an empty text", "[run]\noutput_dir = ''"),
        toml("a bound broken beside a wrong type", "[optim]\nlearning_rate = -1\nweight_decay = 'x'"),
        toml("two bounds broken in one group", "[optim]\nlearning_rate = 0\nepsilon = -1"),
        toml("a bound broken in a list", "[optim]\nbetas = [0.9, 1.0]"),
        toml("a negative number where none is wanted", "[train]\nmax_steps = -1"),
        yaml("null for what needs a value", "optim:\n  learning_rate: null"),
        yaml("nothing for what needs a value", "sft:\n  max_length:"),
        yaml("the text none where null is wanted", "run:\n  run_name: none"),
        toml("a NUL in a text", '[run]\nrun_name = "a\\u0000b"'),
    ],
    "Keys": [
        toml("an unknown group", "[optimiser]\nlearning_rate = 1e-5"),
        toml("an unknown key", '[optim]\nlearning_rate = 1e-5\nshedule = "cosine"'),
        toml("an unknown key far from all", "[optim]\nxyzzy = 1"),
        toml("a key in the wrong group", "[train]\nlearning_rate = 1e-5"),
        toml("a key of the root that is a setting", "learning_rate = 1e-5"),
        toml("a renamed key", "[train]\nmax_seq_length = 2048"),
        toml(
            "TRL's names", "[data]\ndataset_name = 'x'\n[train]\nuse_cpu = true\nbf16 = true\nneftune_noise_alpha = 5"
        ),
        toml("axolotl's names", "[sft]\nsequence_len = 512\nsample_packing = true"),
        toml(
            "an unknown key in the second entry",
            "[[data.datasets]]\npath = 'a.jsonl'\n[[data.datasets]]\npath = 'b.jsonl'\nformt = 'text'",
        ),
        toml("an entry without its path", "[[data.datasets]]\nsplit = 'train'"),
        toml("a group that is a number", "optim = 3"),
        yaml("a group that is null", "optim:\nrun:\n  seed: 3"),
        Case(
            "a group that is text in one file and a table in the next",
            {"a.yaml": "optim: adam", "b.toml": "[optim]\nlearning_rate = 1e-4"},
            given=("a.yaml", "b.toml"),
        ),
        Case(
            "a group that is text, with an option below it",
            {"a.yaml": "optim: adam"},
            options=(option("--learning-rate", "optim.learning_rate", "1e-4"),),
        ),
    ],
    "TOML": [
        toml("a key twice", "[optim]\nlearning_rate = 1e-5\nlearning_rate = 2e-5"),
        toml("a table twice", "[optim]\nepsilon = 1e-8\n[run]\nseed = 1\n[optim]\nlearning_rate = 1e-5"),
        toml("text without quotes", "[optim]\nlr_scheduler_type = cosine"),
        toml("a capital True", "[sft]\npacking = True"),
        toml("None", "[train]\nmax_steps = None"),
        toml("a colon", "[optim]\nlearning_rate: 1e-5"),
        toml("a list that does not end", "[run]\ntags = ['a',\n"),
        toml("a text that does not end", "[run]\nrun_name = 'a\nseed = 1"),
        toml("a secret on a line that cannot be read", "[env]\nHF_TOKEN = hf_sesame"),
        toml("nested beyond reason", "[model]\narchitecture = {a = " + "[" * 2000),
    ],
    "YAML": [
        yaml("no for a flag", "sft:\n  packing: no"),
        yaml("on for a flag", "sft:\n  packing: on"),
        yaml("a quoted true for a flag", "sft:\n  packing: 'true'"),
        yaml("1:30 for a number", "train:\n  max_steps: 1:30"),
        yaml("an underscore in a number", "train:\n  max_steps: 1_000"),
        yaml("a key twice", "optim:\n  learning_rate: 1e-5\n  epsilon: 1e-8\n  learning_rate: 2e-5"),
        yaml("a tab as indent", "optim:\n\tlearning_rate: 1e-5"),
        yaml("a Python tag", "run:\n  run_name: !!python/object/apply:os.system ['true']"),
        yaml("a tag of YAML's own", "run:\n  seed: !!int 5"),
        yaml("a merge key", "base: &base\n  seed: 1\nrun:\n  <<: *base"),
        yaml("a list that does not end", "run:\n  tags: [a, b\n  seed: 3"),
        yaml("a colon in a text", "run:\n  run_name: a: b"),
        yaml("two documents", "run:\n  seed: 1\n---\nrun:\n  seed: 2"),
        yaml("an anchor inside itself", "model:\n  architecture: &a {a: *a}"),
        yaml("a key that is a list", "run:\n  ? [a]\n  : 1"),
        yaml("a control character", "run:\n  run_name: \x07"),
        yaml("a root that is a list", "- optim"),
        yaml("a root that is text", "optim"),
    ],
    "JSON": [
        Case("a comma too many", {"run.json": '{"run": {"seed": 1,}}'}),
        Case("a key twice", {"run.json": '{"run": {"seed": 1,\n "seed": 2}}'}),
        Case("null for what needs a value", {"run.json": '{"run": {"seed": null}}'}),
        Case("NaN", {"run.json": '{"optim": {"learning_rate": NaN}}'}),
    ],
    "Files": [
        Case("a missing file", {"base.toml": ""}, given=("bas.toml",)),
        Case("a missing file with no near name", given=("nothing/here.toml",)),
        Case("a folder", {"runs/a/config.toml": ""}, given=("runs/a",)),
        Case("an unknown kind of file", {"run.ini": "seed = 1"}),
        Case("not UTF-8", {"run.toml": b"[run]\nrun_name = 'caf\xe9'"}),
        Case("UTF-16", {"run.toml": "[run]".encode("utf-16")}),
        Case("a recipe that is none", given=("recipe:nothing",)),
        toml("extends itself", "extends = ['run.toml']"),
        Case(
            "extends in a circle",
            {"a.toml": "extends = ['b.toml']", "b.toml": "extends = ['c.toml']", "c.toml": "extends = ['a.toml']"},
        ),
        toml("extends nothing that is there", "extends = ['base.toml']\n[run]\nseed = 1"),
        toml("extends of the wrong type", "extends = 3"),
        toml("a plug-in that is not there", "plugins = ['no_such_package.reward']"),
        Case(
            "a plug-in that fails",
            {
                "run.toml": "plugins = ['sftctl_broken_plugin']",
                "sftctl_broken_plugin.py": "raise RuntimeError('no licence')",
            },
        ),
    ],
    "Environment": [
        Case("an unknown key", env={"SFTCTL_OPTIM__LERNING_RATE": "1"}),
        Case("an unknown group", env={"SFTCTL_OPTIMISER__LEARNING_RATE": "1"}),
        Case("a group without two underscores", env={"SFTCTL_OPTIM_LEARNING_RATE": "1"}),
        Case("no group at all", env={"SFTCTL_LEARNING_RATE": "1"}),
        Case("a key in the wrong group", env={"SFTCTL_TRAIN__LEARNING_RATE": "1"}),
        Case("lower case", env={"SFTCTL_OPTIM__learning_rate": "1e-4"}),
        Case("lower case in front", env={"sftctl_optim__learning_rate": "1e-4"}),
        Case("a bad list", env={"SFTCTL_RUN__TAGS": "[a, b]"}),
        Case("a bad item of a list", env={"SFTCTL_OPTIM__BETAS": "0.9,x"}),
        Case("a bad number", env={"SFTCTL_OPTIM__LEARNING_RATE": "fast"}),
        Case("a bad flag", env={"SFTCTL_SFT__PACKING": "1"}),
        Case("a key inside a table", env={"SFTCTL_MODEL__ARCHITECTURE__HIDDEN_SIZE": "64"}),
    ],
    "Options": [
        Case("a flag that may be", options=(option("--packing", "sft.packing", "maybe"),)),
        Case("a negative value", options=(option("--learning-rate", "optim.learning_rate", "-1e-4"),)),
        Case("a bad number", options=(option("--max-steps", "train.max_steps", "ten"),)),
        Case("None for none", options=(option("--max-steps", "train.max_steps", "None"),)),
        Case("a list in one option", options=(option("--betas", "optim.betas", "0.9,0.95"),)),
        Case(
            "an option twice",
            options=(option("--seed", "run.seed", "1"), option("--run.seed", "run.seed", "2")),
        ),
        Case("an option and --set", options=(option("--seed", "run.seed", "1"), put("run.seed=2"))),
        Case("--set without =", options=(put("optim.learning_rate"),)),
        Case("--set with an empty path", options=(put("=3"),)),
        Case("--set with bad TOML", options=(put("optim.betas=[0.9,"),)),
        Case("--set with text that has no quotes in a list", options=(put("run.tags=[a]"),)),
        Case("--set of nothing that is there", options=(put("optim.lr=1"),)),
        Case("--set by the short name", options=(put("learning_rate=1"),)),
        Case("--set of a group", options=(put("optim=1"),)),
        Case("--set of a key inside a number", options=(put("optim.learning_rate.x=1"),)),
        Case("--set of one item of a list", options=(put("data.datasets[0].path=x"),)),
        Case("+= on a number", options=(put("optim.learning_rate+=1"),)),
        Case("+= of a bad entry", options=(put("data.datasets+=[{pth='x'}]"),)),
        Case("~ of nothing that is there", options=(put("~optim.lr"),)),
    ],
    "Python": [
        Case("a wrong type", overrides={"sft.packing": "true"}),
        Case("an unknown path", overrides={"optim.lerning_rate": 1, "optim": {"lr": 1}, "learning_rate": 1}),
        Case("a key that is no text", overrides={"model.architecture": {1: 2}}),
        Case("a value of no type of ours", overrides={"run.tags": {"a"}, "model.architecture": {"a": object}}),
        Case("a group that is a number", overrides={"optim": 3}),
    ],
    "Rules": [
        toml("a contradiction", "[peft]\nuse_peft = true\nload_in_8bit = true\nload_in_4bit = true"),
        Case(
            "a contradiction between sources",
            {"run.toml": "[distributed]\nstrategy = 'none'"},
            env={"SFTCTL_DISTRIBUTED__NPROC_PER_NODE": "2"},
        ),
        toml("a setting without effect", "[sft]\npacking_strategy = 'wrapped'\n[peft]\nlora_r = 64"),
        toml("no model_type", "[model]\ninit = 'random'\narchitecture = {hidden_size = 64}"),
        toml(
            "a share of some sources",
            "[[data.datasets]]\npath = 'a.jsonl'\nfraction = 0.5\n[[data.datasets]]\npath = 'b.jsonl'",
        ),
        toml("a metric that is not measured", "[eval]\nmetric_for_best_model = 'eval_exact_match'"),
        toml("a machine that is none", "[distributed]\nnode_rank = 2"),
    ],
    "Secrets": [
        toml("a secret that errs", "[env]\nHF_TOKEN = 12345"),
        toml("a secret beside what errs", "env = {HF_TOKEN = 'hf_sesame', OMP_NUM_THREADS = 4}"),
        Case("a secret of the environment", env={"SFTCTL_ENV__HF_TOKEN": "hf_\0sesame"}),
        Case("a secret given twice", options=(put("env.WANDB_API_KEY=sesame"), put("env.WANDB_API_KEY=other"))),
        Case("a secret beside a bad path", options=(put("envs.HF_TOKEN=hf_sesame"),)),
    ],
    "Several at once": [
        Case(
            "three layers",
            {"base.toml": "[optim]\nlearning_rate = '1e-5'", "run.yaml": "extends: base.toml\nsft:\n  packing: yes"},
            given=("run.yaml",),
            env={"SFTCTL_RUN__SEED": "many"},
            options=(option("--max-steps", "train.max_steps", "0"),),
        ),
    ],
}

NOTES: list[Case] = [
    Case(
        "a setting that idles on purpose",
        {"run.toml": "[peft]\nuse_peft = true\nlora_r = 64"},
        options=(option("--no-use-peft", "peft.use_peft", "false"),),
    ),
    toml("an interval of what is absent", "[eval]\neval_steps = 100"),
]


def screen(case: Case, folder: Path) -> str:
    """The report of a case, resolved in a folder of its own."""
    folder.mkdir()
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    for name, content in case.files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    given = case.given if case.given is not None else tuple(case.files)[:1]
    try:
        resolved = resolve(given, env=case.env, options=case.options, overrides=case.overrides)
    except ConfigError as error:
        return render(error).replace(str(folder), "/work")
    finally:
        sys.path.remove(str(folder))
    return render_notes(resolved.notes)


@pytest.fixture(scope="module")
def screens(tmp_path_factory: pytest.TempPathFactory) -> str:
    before = Path.cwd()
    base = tmp_path_factory.mktemp("screens")
    with pytest.MonkeyPatch.context() as patch:
        # What is shipped changes; the screen stands for all of its kind.
        patch.setattr(recipes, "names", lambda: ("quickstart",))
        parts = ["# What a user sees\n\nEvery bad input of the specification, and its screen.\n"]
        try:
            for heading, cases in [*CASES.items(), ("Notes, which are no errors", NOTES)]:
                parts.append(f"## {heading}\n")
                for number, case in enumerate(cases):
                    folder = base / f"{len(parts)}-{number}"
                    parts.append(f"**{case.title}**\n\n```text\n{screen(case, folder)}\n```\n")
        finally:
            os.chdir(before)
    return "\n".join(parts)


def test_every_screen_is_as_it_was_looked_through(screens: str) -> None:
    if os.environ.get("SFTCTL_TEST_WRITE_SCREENS"):
        SCREENS.write_text(screens)
    assert screens == SCREENS.read_text()


def test_no_screen_shows_a_secret_or_a_traceback(screens: str) -> None:
    assert "sesame" not in screens
    assert "Traceback" not in screens


def test_every_case_has_a_screen(screens: str) -> None:
    assert "```text\n\n```" not in screens
