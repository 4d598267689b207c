"""The best evaluation so far, and whether to wait for a better one. It travels with the checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sftctl.errors import ConfigError, Problem

LOWER_IS_BETTER = ("loss", "entropy")


class BestMetric:
    """Judges evaluations by the metric `name`. `patience`: how many in a row without a better one are enough.

    At patience 2, losses 3.0 2.5 2.6 2.4 2.4 2.5: the fourth is the best, and after the sixth it is enough.
    """

    def __init__(self, name: str, *, patience: int | None) -> None:
        self.name = name
        self.patience = patience
        self.value: float | None = None
        self.evaluations_without_better = 0

    def judge(self, metrics: Mapping[str, float], *, step: int) -> bool:
        """Whether these are the best metrics of a checkpoint so far. Before the first step there is none to keep,
        and the patience begins with training. Raises ConfigError where no evaluation gives the metric."""
        if self.name not in metrics:
            known = ", ".join(metrics)
            problem = Problem(
                "eval.metric_for_best_model", f"no evaluation gives {self.name!r}", help=f"one of {known}"
            )
            raise ConfigError(problem)
        better = self._is_better(metrics[self.name])
        if better:
            self.value = metrics[self.name]
        if step:
            self.evaluations_without_better = 0 if better else self.evaluations_without_better + 1
        return better and step > 0

    def _is_better(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        if self.value is None:
            return True
        return value < self.value if any(word in self.name for word in LOWER_IS_BETTER) else value > self.value

    def is_enough(self) -> bool:
        return self.patience is not None and self.evaluations_without_better >= self.patience
