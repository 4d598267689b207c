"""Conversations under one system prompt train the same whether it is computed once or for each of them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sftctl.engine.training import step

SYSTEMS = ("You add numbers. Answer with the sum, and nothing else.", "You count. Say how many terms there are.")


@pytest.fixture
def talks(tmp_path: Path) -> str:
    """24 conversations under two system prompts, as an option of the command line."""
    draw = random.Random(3)
    path = tmp_path / "talks.jsonl"
    lines = []
    for number in range(24):
        terms = [draw.randrange(100) for _ in range(draw.randrange(1, 5))]
        turns = (("system", SYSTEMS[number % 2]), ("user", " + ".join(map(str, terms))), ("assistant", str(sum(terms))))
        lines.append(json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return f"--set=data.datasets=[{{path={json.dumps(str(path))}}}]"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens that each forward pass takes."""
    counts: list[int] = []
    forward = step.forward_kwargs

    def counting(batch, **given):
        counts.append(batch.input_ids.size)
        return forward(batch, **given)

    monkeypatch.setattr(step, "forward_kwargs", counting)
    return counts


def curve(run: Path) -> dict[str, np.ndarray]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {name: np.array([record[name] for record in records]) for name in records[0]}


OPTIONS = ("--max-steps=12", "--assistant-only-loss", "--max-length=256")


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--packing"],
        ["--packing", "--gradient-checkpointing=true", "--loss-type=dft"],
        ["--packing", "--gradient-checkpointing=selective", "--activation-offloading", "--pad-to-multiple-of=16"],
    ],
    ids=["flat", "packed", "checkpointed, dft", "selective, offloaded, lengthened"],
)
def test_a_shared_prefix_changes_nothing_but_the_work(
    more: list[str], train: Callable[..., Path], talks: str, seen: list[int]
) -> None:
    """The equivalence contract over 12 steps, with over a third fewer tokens through the model."""
    shared = curve(train(talks, *OPTIONS, *more, name="shared"))
    work = sum(seen)
    seen.clear()
    plain = curve(train(talks, *OPTIONS, *more, "--no-share-prefix", name="plain"))
    assert work < 0.65 * sum(seen)
    for name in ("num_tokens", "num_trained_tokens"):
        np.testing.assert_array_equal(shared[name], plain[name])
    np.testing.assert_allclose(shared["loss"], plain["loss"], rtol=1e-5)
    np.testing.assert_allclose(shared["grad_norm"], plain["grad_norm"], rtol=1e-4)
    np.testing.assert_allclose(shared["entropy"], plain["entropy"], rtol=1e-5)
    drift = np.mean((shared["loss"][6:] - plain["loss"][6:]) / plain["loss"][6:])
    assert abs(drift) < 2e-6


def test_where_it_is_not_exact_it_is_left_alone_or_refused(
    train: Callable[..., Path], talks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    drops = "--set=model.architecture.attention_dropout=0.1"
    run = train(talks, *OPTIONS, "--packing", drops, name="drops")
    assert json.loads((run / "environment.json").read_text())["shares_prefixes"] is False
    capsys.readouterr()
    train(talks, *OPTIONS, "--packing", "--share-prefix", drops, name="refused", code=2)
    said = capsys.readouterr().err
    assert "sft.share_prefix: true cannot be had here: each copy of a prefix draws random numbers of its own" in said
    assert "attention_dropout = 0.1" in said


def test_a_run_says_that_it_shares(train: Callable[..., Path], talks: str) -> None:
    run = train(talks, *OPTIONS, "--packing", name="shares")
    assert json.loads((run / "environment.json").read_text())["shares_prefixes"] is True
