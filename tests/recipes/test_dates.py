"""The quickstart's data set is what its script writes, and keeps what the script promises."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from datetime import date
from pathlib import Path
from types import ModuleType

import pytest

DATA = Path(__file__).parents[2] / "recipes" / "data"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_dates", DATA / "make_dates.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def test_the_shipped_files_are_what_the_script_writes(script: ModuleType, tmp_path: Path) -> None:
    training, held_out = script.make()
    script.write(tmp_path / "train", training)
    script.write(tmp_path / "eval", held_out)
    assert (tmp_path / "train").read_bytes() == (DATA / "dates_train.jsonl").read_bytes()
    assert (tmp_path / "eval").read_bytes() == (DATA / "dates_eval.jsonl").read_bytes()


def test_no_held_out_date_is_trained_under_any_spelling(script: ModuleType) -> None:
    training, held_out = rows("dates_train.jsonl"), rows("dates_eval.jsonl")
    assert (len(training), len(held_out)) == (8000, 400)
    prompts = [script.normalise(row["prompt"]) for row in training + held_out]
    assert len(set(prompts)) == len(prompts)
    assert not {row["completion"] for row in training} & {row["completion"] for row in held_out}


def test_answers_are_dates_and_spellings_have_equal_shares(script: ModuleType) -> None:
    held_out = rows("dates_eval.jsonl")
    kinds: Counter[str] = Counter()
    for row in held_out:
        day = date.fromisoformat(row["completion"])
        kinds.update(s for s in script.SPELLINGS if script.spell(day, s) == row["prompt"])
    assert set(kinds) == set(script.SPELLINGS)
    assert min(kinds.values()) >= 400 // len(script.SPELLINGS)
