"""The commands from the outside: what they print, where, and how they end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sftctl.cli.train import run_stem
from sftctl.errors import Interrupted, Problem

Sftctl = Callable[..., tuple[int, str, str]]


class TestShow:
    def test_origins_and_what_they_shadow(self, sftctl: Sftctl, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SFTCTL_RUN__SEED", "7")
        code, out, err = sftctl(
            "config", "show", "base.toml", "--learning-rate", "1e-4", "over.toml", "--origin", "--changed"
        )
        assert (code, err) == (0, "")
        assert out == SHOWN

    def test_every_leaf_without_origins(self, sftctl: Sftctl) -> None:
        code, out, _ = sftctl("config", "show")
        assert code == 0
        assert "  max_length                   1024\n" in out
        assert "default" not in out

    def test_nothing_changed(self, sftctl: Sftctl) -> None:
        assert sftctl("config", "show", "--changed") == (0, "nothing differs from the defaults\n", "")

    @pytest.mark.parametrize("format", ["toml", "yaml", "json"])
    def test_what_is_shown_loads_back_equal(self, sftctl: Sftctl, folder: Path, format: str) -> None:
        code, out, _ = sftctl("config", "show", "base.toml", "--format", format)
        assert code == 0
        (folder / f"again.{format}").write_text(out)
        assert sftctl("config", "show", f"again.{format}", "--format", format) == (0, out, "")

    def test_a_secret_is_never_shown(self, sftctl: Sftctl) -> None:
        for arguments in (["--origin"], ["--format", "json"], ["--format", "toml"], ["--format", "yaml"]):
            code, out, err = sftctl("config", "show", "over.toml", *arguments)
            assert code == 0
            assert "****" in out
            assert "sesame" not in out + err

    def test_a_list_of_tables_has_a_line_each(self, sftctl: Sftctl) -> None:
        _, out, _ = sftctl("config", "show", "base.toml", "--changed", "--dataset", "more/rows", "--set", "run.tags=[]")
        assert '  datasets       [{path = "more/rows"}]\n' in out
        _, out, _ = sftctl("config", "show", "base.toml", "--changed", "--set", 'data.datasets+=[{path="more/rows"}]')
        assert '  datasets       [{path = "some/rows"},\n                  {path = "more/rows"}]\n' in out


SHOWN = """\
[run]
  seed               7                         SFTCTL_RUN__SEED
                     over 42                   default

[model]
  name_or_path       "some/model"              base.toml:2:16
                     over none                 default

[data]
  datasets           [{path = "some/rows"}]    base.toml:8:1
                     over []                   default

[optim]
  learning_rate      0.0001                    --learning-rate
                     over 2e-05                over.toml:2:17
                     over 1e-05                base.toml:5:17
                     over 2e-05                default
  betas              [0.9, 0.95]               base.toml:6:9
                     over [0.9, 0.999]         default

[env]
  HF_TOKEN           "****"                    over.toml:5:12
  SFT_TEST_VARIABLE  "from the file"           over.toml:6:21
"""


def test_problems_of_files_environment_and_options_are_one_report(
    sftctl: Sftctl, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "bad.toml").write_text('[optim]\nshedule = "cosine"\n')
    monkeypatch.setenv("SFTCTL_RUN__SEED", "x")
    code, out, err = sftctl("config", "show", "bad.toml", "--max-steps", "0", "--lerning-rate", "1", "--packing=maybe")
    assert (code, out) == (2, "")
    order = ["optim.shedule", "run.seed", "sft.packing", "--lerning-rate", "5 problems"]
    places = [err.index(each) for each in order]
    assert places == sorted(places)
    assert "Traceback" not in err
    assert "Usage" not in err


def test_an_option_of_a_plugin(sftctl: Sftctl, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sftctl.config import registry

    module = """\
import attrs
from sftctl.config.registry import register_group
from sftctl.config.schema import leaf

@attrs.frozen(kw_only=True)
class Reward:
    "Reward model."
    reward_scale: float = leaf(1.0, "Factor of the reward.")

register_group("reward", Reward)
"""
    (folder / "reward_plugin.py").write_text(module)
    (folder / "reward.toml").write_text('plugins = ["reward_plugin"]\n')
    monkeypatch.syspath_prepend(folder)
    try:
        code, out, err = sftctl("config", "show", "--reward-scale", "3", "reward.toml", "--changed", "--origin")
    finally:
        registry.unregister_all()
        sys.modules.pop("reward_plugin", None)
    assert (code, err) == (0, "")
    assert "reward_scale  3.0                       --reward-scale" in out


class TestTrain:
    def test_what_is_resolved_is_trained(self, sftctl: Sftctl, trained: list[dict[str, Any]]) -> None:
        code, out, err = sftctl("train", "base.toml", "--learning-rate", "1e-4", "--dry-run")
        assert (code, out, err) == (0, "start torch …\nnote: trained\n", "")
        assert trained[0]["bundle"].optim.learning_rate == 1e-4
        assert trained[0]["resolved"].nodes["optim.learning_rate"].origin.name == "--learning-rate"
        assert trained[0]["dry_run"] is True
        assert trained[0]["recipe"] == "base"
        assert trained[0]["command"] == ("sftctl", "train", "base.toml", "--learning-rate", "1e-4", "--dry-run")

    def test_the_environment_is_set_but_never_over_the_callers(
        self, sftctl: Sftctl, trained: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("SFT_TEST_VARIABLE", raising=False)
        monkeypatch.setenv("HF_TOKEN", "the caller's")
        assert sftctl("train", "base.toml", "over.toml")[0] == 0
        monkeypatch.delenv("SFT_TEST_VARIABLE")  # which the command has set in this process
        assert trained[0]["environ"]["SFT_TEST_VARIABLE"] == "from the file"
        assert trained[0]["environ"]["HF_TOKEN"] == "the caller's"

    def test_what_is_missing_is_said_before_anything_starts(
        self, sftctl: Sftctl, trained: list[dict[str, Any]]
    ) -> None:
        code, out, err = sftctl("train")
        assert (code, out, trained) == (2, "", [])
        assert err.startswith("error: model.name_or_path: no model is named")


def test_what_a_run_is_called_after() -> None:
    files = [
        (),
        ("recipe:quickstart",),
        ("a/base.toml", "b/over.yaml"),
        ("runs/first-1/config.toml",),
        ("config.toml",),
    ]
    assert [run_stem(each) for each in files] == ["train", "quickstart", "over", "first-1", "config"]


def test_a_run_that_was_stopped_is_no_error(sftctl: Sftctl, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(words: list[str]) -> int:
        raise Interrupted(Problem("", "step 8 is saved", help="the same command goes on"))

    monkeypatch.setattr("sftctl.cli.app._run", stopped)
    assert sftctl("train") == (3, "", "stopped: step 8 is saved\n  = help: the same command goes on\n")


class TestRuns:
    def test_list_of_nothing(self, sftctl: Sftctl) -> None:
        assert sftctl("runs", "list") == (0, "no runs in runs\n", "")
        assert json.loads(sftctl("runs", "list", "--format", "json")[1]) == []

    def test_a_run_that_is_not_there(self, sftctl: Sftctl) -> None:
        code, out, err = sftctl("runs", "show", "nothing")
        assert (code, out) == (2, "")
        assert "there is no run runs/nothing" in err


def test_a_key_stays_with_its_value_where_a_line_is_broken(sftctl: Sftctl, folder: Path) -> None:
    (folder / "here").mkdir()
    entry = "[{path='here', columns={prompt='the_question', completion='the_answer'}, limit=1000, name='a_name'}]"
    _, out, _ = sftctl("config", "show", "--changed", "--set", f"data.datasets={entry}")
    assert out == (
        "[data]\n"
        '  datasets  [{path = "./here", name = "a_name",\n'
        '            columns = {prompt = "the_question", completion = "the_answer"},\n'
        "            limit = 1000}]\n"
    )
