"""Which evaluation is the best, and when to stop waiting for a better one."""

import pytest

from sftctl.engine.run.best import BestMetric
from sftctl.errors import ConfigError


def judged(name, values, patience=None, first_step=1):
    """(is it the best, is it enough), one after the other."""
    best = BestMetric(name, patience=patience)
    return [(best.judge({name: value}, step=first_step + n), best.is_enough()) for n, value in enumerate(values)]


def test_the_worked_example():
    found = judged("eval_loss", [3.0, 2.5, 2.6, 2.4, 2.4, 2.5], patience=2)
    assert [is_best for is_best, _ in found] == [True, True, False, True, False, False]
    assert [enough for _, enough in found] == [False] * 5 + [True]


@pytest.mark.parametrize(
    ("name", "values", "best"),
    [
        ("eval_loss", [2.0, 1.0, 3.0], [True, True, False]),
        ("eval_entropy", [2.0, 1.0, 3.0], [True, True, False]),
        ("eval_exact_match", [0.2, 0.1, 0.3], [True, False, True]),
        ("eval_loss", [float("nan"), 2.0, float("inf"), float("nan")], [False, True, False, False]),
    ],
)
def test_losses_get_better_downwards_and_the_rest_upwards(name, values, best):
    assert [is_best for is_best, _ in judged(name, values)] == best


def test_before_the_first_step_there_is_no_checkpoint_to_keep():
    """But its value is the one to beat, and patience begins with training."""
    best = BestMetric("eval_loss", patience=1)
    assert not best.judge({"eval_loss": 1.0}, step=0)
    assert (best.value, best.is_enough()) == (1.0, False)
    assert not best.judge({"eval_loss": 2.0}, step=1)
    assert best.is_enough()


def test_a_metric_that_no_evaluation_gives():
    with pytest.raises(ConfigError, match="no evaluation gives 'eval_bleu'; one of eval_loss, eval_entropy"):
        BestMetric("eval_bleu", patience=None).judge({"eval_loss": 1.0, "eval_entropy": 2.0}, step=1)
