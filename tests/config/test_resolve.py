"""From sources to a bundle: priority, strictness, all problems at once, and files that load back equal."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sftctl
from sftctl.config.diff import compare
from sftctl.config.leaves import Leaf, leaves
from sftctl.config.report import render
from sftctl.config.resolve import Resolved, default_of, resolve
from sftctl.config.schema import Bundle
from sftctl.config.show import dump
from sftctl.config.sources.options import Assignment
from sftctl.errors import ConfigError


def write(folder: Path, text: str, name: str = "run.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refused(*files: Path, env: dict[str, str] | None = None, options: tuple[Assignment, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(files, env=env, options=options)
    assert caught.value.exit_code == 2
    return render(caught.value)


SEED = {
    "sft.max_length": 1024,
    "sft.packing": False,
    "sft.completion_only_loss": None,
    "sft.assistant_only_loss": False,
    "sft.loss_type": "nll",
    "sft.activation_offloading": False,
}


def test_the_defaults_that_are_a_contract() -> None:
    nodes = resolve().nodes
    assert {path: nodes[path].value for path in SEED} == SEED
    assert {str(nodes[path].origin) for path in SEED} == {"default"}


def test_later_sources_win_and_say_what_they_shadow(tmp_path: Path) -> None:
    """defaults < files, left to right < environment < options."""
    first = write(tmp_path, "[optim]\nlearning_rate = 1e-3\nweight_decay = 0.1\nepsilon = 1e-7\n", "a.toml")
    second = write(tmp_path, "optim:\n  learning_rate: 2e-3\n  weight_decay: 0.2\n", "b.yaml")
    resolved = resolve(
        (first, second),
        env={"SFTCTL_OPTIM__LEARNING_RATE": "3e-3", "HOME": "x"},
        options=(Assignment("--learning-rate", "option", "optim.learning_rate", "4e-3"),),
    )
    optim = resolved.bundle.optim
    assert (optim.learning_rate, optim.weight_decay, optim.epsilon) == (4e-3, 0.2, 1e-7)
    node = resolved.nodes["optim.learning_rate"]
    assert node.origin.name == "--learning-rate"
    assert [each.value for each in node.shadowed] == [3e-3, 2e-3, 1e-3, 2e-5]
    assert [each.origin.kind for each in node.shadowed] == ["env", "file", "file", "default"]
    assert (node.shadowed[1].origin.line, node.shadowed[1].origin.column) == (2, 18)


def test_extends_comes_before_the_file_that_says_it(tmp_path: Path) -> None:
    write(tmp_path, "[run]\nseed = 1\n[sft]\nmax_length = 64\n", "base.toml")
    child = write(tmp_path, 'extends = ["base.toml"]\n[run]\nseed = 2\n')
    bundle = resolve((child,)).bundle
    assert (bundle.run.seed, bundle.sft.max_length) == (2, 64)


def test_a_circle_of_extends_is_drawn(tmp_path: Path) -> None:
    write(tmp_path, 'extends = ["b.toml"]\n', "a.toml")
    write(tmp_path, 'extends = ["a.toml"]\n', "b.toml")
    report = refused(tmp_path / "a.toml")
    assert "a.toml" in report
    assert "b.toml" in report
    assert "circle" in report or "cycle" in report


WRONG = {
    "bool for int": ("[run]\nseed = true\n", "run.seed"),
    "float for int": ("[run]\nseed = 1.5\n", "run.seed"),
    "quoted number": ('[run]\nseed = "1"\n', "run.seed"),
    "int for str": ("[run]\nrun_name = 3\n", "run.run_name"),
    "string for bool": ('[sft]\npacking = "false"\n', "sft.packing"),
    "string for tuple": ('[run]\ntags = "abc"\n', "run.tags"),
    "choice": ('[sft]\nloss_type = "ntl"\n', "did you mean"),
    "nan": ("[optim]\nlearning_rate = nan\n", "finite"),
    "negative": ("[optim]\nlearning_rate = -1.0\n", "must be > 0"),
    "unknown key": ('[optim]\nshedule = "cosine"\n', "unknown key"),
    "unknown group": ("[optimiser]\nlr = 1\n", "optimiser"),
    "group is a scalar": ("optim = 3\n", "optim"),
    "duplicate key": ("[run]\nseed = 1\nseed = 2\n", "run.toml:3"),
    "tuple length": ("[optim]\nbetas = [0.9]\n", "optim.betas"),
    "second entry of a list of tables": (
        '[[data.datasets]]\npath="a"\n[[data.datasets]]\npath="b"\nnmae="c"\n',
        "nmae",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_values_are_refused_with_their_place(kind: str, tmp_path: Path) -> None:
    text, expected = WRONG[kind]
    report = refused(write(tmp_path, text))
    assert report.startswith("error: ")
    assert "run.toml:" in report
    assert expected in report


def test_the_report_of_the_specification(tmp_path: Path) -> None:
    report = refused(write(tmp_path, '\n[optim]\nshedule = "cosine"\n', "bad.toml"))
    assert report.splitlines()[0] == "error: optim.shedule: unknown key"
    assert report.splitlines()[1].endswith("bad.toml:3:1")
    assert " 3 | shedule" in report
    assert "^^^^^^^" in report
    assert "= help: did you mean 'lr_scheduler_type'?" in report


def test_all_problems_of_all_layers_come_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, '[optim]\nlearning_rate = -1.0\nbetas = [2.0, 0.9]\n[run]\nseed = "x"\n')
    report = refused(
        path,
        env={"SFTCTL_SFT__MAX_LENGTH": "many", "SFTCTL_NOPE": "1"},
        options=(Assignment("--packing", "option", "sft.packing", "perhaps"),),
    )
    for place in ("optim.learning_rate", "optim.betas", "run.seed", "sft.max_length", "SFTCTL_NOPE", "sft.packing"):
        assert place in report
    assert report.count("error: ") == 6


def test_the_environment_is_coerced_and_files_are_not() -> None:
    bundle = resolve(
        env={
            "SFTCTL_RUN__SEED": "1e3",
            "SFTCTL_SFT__PACKING": "true",
            "SFTCTL_OPTIM__MAX_GRAD_NORM": "none",
            "SFTCTL_RUN__TAGS": "",
        }
    ).bundle
    assert (bundle.run.seed, bundle.sft.packing, bundle.optim.max_grad_norm) == (1000, True, None)


def test_an_inert_setting_is_reported(tmp_path: Path) -> None:
    assert "packing_strategy" in refused(write(tmp_path, '[sft]\npacking_strategy = "wrapped"\n'))


def test_secrets_are_masked(tmp_path: Path) -> None:
    path = write(tmp_path, '[env]\nHF_TOKEN = "hf_verysecret"\nPLAIN = "seen"\n')
    resolved = resolve((path,))
    assert resolved.bundle.env["HF_TOKEN"] == "hf_verysecret"
    for form in ("toml", "yaml", "json"):
        text = dump(resolved, form)  # type: ignore[arg-type]
        assert "verysecret" not in text
        assert "seen" in text


def test_a_bundle_is_frozen() -> None:
    bundle = resolve().bundle
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        bundle.optim.learning_rate = 1.0  # type: ignore[misc]


def test_load_evolve_and_sweep(tmp_path: Path) -> None:
    path = write(tmp_path, "[run]\nseed = 5\n")
    bundle = sftctl.load(path, overrides={"optim.learning_rate": 1e-4})
    assert (bundle.run.seed, bundle.optim.learning_rate) == (5, 1e-4)
    packed = sftctl.evolve(bundle, {"sft.packing": True})
    assert packed.sft.packing
    assert not bundle.sft.packing
    grid = list(sftctl.sweep(bundle, {"optim.learning_rate": [1e-5, 2e-5], "sft.loss_type": ["nll", "dft"]}))
    assert {(each.optim.learning_rate, each.sft.loss_type) for each in grid} == {
        (1e-5, "nll"), (1e-5, "dft"), (2e-5, "nll"), (2e-5, "dft"),
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"sft\.loss_type"):
        sftctl.evolve(bundle, {"sft.loss_type": "mse"})


# ---------------------------------------------------------------------- round trips

OPEN = ("run.", "optim.", "train.", "eval.", "log.", "checkpoint.save")


def values(leaf: Leaf) -> st.SearchStrategy[Any]:
    """Values that a leaf takes, by its choices, type and bounds."""
    if leaf.choices:
        return st.sampled_from(list(leaf.choices))
    limit = leaf.limit
    low = 0 if limit is None or limit.low is None else math.floor(limit.low)
    if leaf.base is bool:
        return st.booleans()
    if leaf.base is int:
        return st.integers(low + 1, low + 10_000)
    if leaf.base is float:
        return st.floats(low + 1e-6, low + 0.9, exclude_max=True)
    return st.from_regex(r"[a-z][a-z0-9-]{0,12}", fullmatch=True)


def scalars() -> list[Leaf]:
    return [
        leaf
        for leaf in leaves().values()
        if leaf.path.startswith(OPEN) and leaf.base in (bool, int, float, str)
        and not leaf.is_tuple and not leaf.is_path
    ]  # fmt: skip


@st.composite
def overrides(draw: st.DrawFn) -> dict[str, Any]:
    chosen = draw(st.lists(st.sampled_from(scalars()), unique_by=lambda leaf: leaf.path, max_size=8))
    return {leaf.path: draw(values(leaf)) for leaf in chosen}


def resolved_or_none(said: dict[str, Any]) -> Resolved | None:
    """Some draws break a cross-field rule; those are no bundles."""
    try:
        return resolve(overrides=said)
    except ConfigError:
        return None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(said=overrides())
@pytest.mark.parametrize("form", ["toml", "yaml", "json"])
def test_what_show_writes_loads_back_equal(form: Any, said: dict[str, Any], tmp_path: Path) -> None:
    resolved = resolved_or_none(said)
    if resolved is None:
        return
    path = write(tmp_path, dump(resolved, form), f"shown.{form}")
    assert resolve((path,)).bundle == resolved.bundle


def test_a_file_of_each_kind_says_the_same(tmp_path: Path) -> None:
    toml = write(tmp_path, "[optim]\nlearning_rate = 1e-5\nbetas = [0.9, 0.95]\n", "a.toml")
    yaml = write(tmp_path, "optim:\n  learning_rate: 1e-5\n  betas: [0.9, 0.95]\n", "a.yaml")
    text = json.dumps({"optim": {"learning_rate": 1e-5, "betas": [0.9, 0.95]}})
    bundles = [resolve((path,)).bundle for path in (toml, yaml, write(tmp_path, text, "a.json"))]
    assert bundles[0] == bundles[1] == bundles[2]


def test_defaults_are_the_schemas() -> None:
    bundle = resolve().bundle
    for leaf in leaves().values():
        assert getattr(getattr(bundle, leaf.group), leaf.name) == default_of(leaf)
    assert isinstance(bundle, Bundle)


def test_diff_names_the_leaves_that_differ(tmp_path: Path) -> None:
    a = write(tmp_path, "[run]\nseed = 1\n", "a.toml")
    b = write(tmp_path, "[run]\nseed = 2\n[sft]\npacking = true\n", "b.toml")
    assert {each.path for each in compare(str(a), str(b))} == {"run.seed", "sft.packing"}


def test_a_data_set_of_the_command_line_is_a_path_or_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts = ["a.jsonl", '{path="b.jsonl", columns={user="question"}, limit=3}']
    options = tuple(Assignment("--dataset", "option", "data.datasets", text) for text in texts)
    first, second = resolve(options=options).bundle.data.datasets
    assert (first.path, second.path) == (str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"))
    assert (second.columns["user"], second.limit) == ("question", 3)
    assert "pth" in refused(options=(Assignment("--dataset", "option", "data.datasets", '{pth="b.jsonl"}'),))
