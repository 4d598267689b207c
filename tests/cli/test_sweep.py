"""A grid of runs: what is run, what is told, and what happens when one fails."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sftctl.errors import Interrupted, Problem, TrainingError

Sftctl = Callable[..., tuple[int, str, str]]
Loss = Callable[[Any], float]

# The command forks before it has threads; a test process that imported torch has some. Python 3.12 warns of that.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> Callable[[Loss], None]:
    """Makes the driver answer with a loss that is a function of the bundle."""

    def use(loss_of: Loss) -> None:
        def train(bundle: Any, **settings: Any) -> Any:
            name = bundle.run.run_name or f"lr{bundle.optim.learning_rate:g}"
            return SimpleNamespace(path=Path("runs") / name, last_metrics={"loss": loss_of(bundle)})

        driver = ModuleType("sftctl.engine.driver")
        driver.train = train  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "sftctl.engine.driver", driver)

    return use


OVER = ("--over", "optim.learning_rate=1e-5,2e-5", "--over", "sft.loss_type=nll,dft")


def test_every_combination_is_run_and_the_best_comes_first(sftctl: Sftctl, losses: Callable[[Loss], None]) -> None:
    losses(lambda bundle: bundle.optim.learning_rate * (1e5 if bundle.sft.loss_type == "nll" else 5e4))
    code, out, err = sftctl("sweep", "base.toml", *OVER)
    assert (code, err) == (0, "")
    assert "run 4 of 4: optim.learning_rate=2e-5, sft.loss_type=dft\n" in out
    assert out.endswith(
        "learning_rate  loss_type    loss  run\n"
        "1e-5           dft        0.5000  runs/lr1e-05\n"
        "1e-5           nll        1.0000  runs/lr1e-05\n"
        "2e-5           dft        1.0000  runs/lr2e-05\n"
        "2e-5           nll        2.0000  runs/lr2e-05\n"
        "note: these losses are not of one scale: compare by another eval.metric_for_best_model, such as\n"
        "      eval_mean_token_accuracy, which needs data.eval_datasets or data.test_split_size\n"
    )


def test_runs_that_have_a_name_get_one_each(sftctl: Sftctl, losses: Callable[[Loss], None]) -> None:
    losses(lambda bundle: 1.0)
    for option in (["--run-name", "x"], ["--set", "run.run_name=x"]):
        _, out, err = sftctl("sweep", "base.toml", "--over", "optim.betas=[0.9,0.95],[0.8,0.9]", *option)
        assert err == ""
        assert "runs/x-betas=-0.9-0.95-\n" in out
        assert "runs/x-betas=-0.8-0.9-\n" in out


def test_a_run_that_fails_does_not_stop_the_others(sftctl: Sftctl, losses: Callable[[Loss], None]) -> None:
    def loss(bundle: Any) -> float:
        if bundle.run.seed == 1:
            raise TrainingError(Problem("", "the loss is not finite", help="lower the learning rate"))
        if bundle.run.seed == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if bundle.run.seed == 3:
            raise ZeroDivisionError("oops")
        return 0.25

    losses(loss)
    code, out, err = sftctl("sweep", "base.toml", "--over", "run.seed=1,2,3,4")
    assert code == 1
    assert "error: the loss is not finite" in err
    table = out[out.index("seed") :].splitlines()[-4:]
    assert table[0] == "4     0.2500  runs/lr1e-05"
    assert table[1] == "1          -  failed: the loss is not finite"
    assert table[2] == "2          -  failed: the process was killed by SIGKILL"
    assert table[3] == "3          -  failed: a bug of ours: ZeroDivisionError: oops"


def test_a_sweep_that_is_stopped_says_where(sftctl: Sftctl, losses: Callable[[Loss], None]) -> None:
    def loss(bundle: Any) -> float:
        if bundle.run.seed == 2:
            raise Interrupted(Problem("", "step 8 is saved"))
        return 1.0

    losses(loss)
    code, out, err = sftctl("sweep", "base.toml", "--over", "run.seed=1,2,3")
    assert code == 3
    assert "run 3" not in out
    assert err == (
        "stopped: step 8 is saved\n"
        "stopped: the sweep was stopped in run 2 of 3\n = help: the same command goes on from there\n"
    ).replace("\n = help", "\n  = help")


def test_all_is_checked_before_the_first_run(sftctl: Sftctl, losses: Callable[[Loss], None]) -> None:
    losses(lambda bundle: 1.0)
    code, out, err = sftctl("sweep", "base.toml", "--over", "run.seed=1,x", "--over", "sft.loss_type=nll,dtf")
    assert (code, out) == (2, "")
    assert "run.seed: expected a whole number, got 'x'" in err
    assert "sft.loss_type" in err
    assert err.endswith("2 problems\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "there is nothing to sweep over"),
        (["--over", "run.seed"], "'run.seed' is no list of values to go over"),
        (["--over", "run.seed=1", "--over", "run.seed=2"], "run.seed: is given twice by --over"),
        (["--over", "sed=1"], "sed: there is no such setting"),
        (["--over", "run.seed=1,2", "--seed", "3"], "run.seed: is given twice, by --seed and --over"),
        (["--over", "run.seed=1,2", "--sede", "3"], "--sede: unknown option"),
    ],
)
def test_mistakes(sftctl: Sftctl, arguments: list[str], said: str) -> None:
    code, out, err = sftctl("sweep", "base.toml", *arguments)
    assert (code, out) == (2, "")
    assert said in err
