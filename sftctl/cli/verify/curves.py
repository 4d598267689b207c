"""Two curves of the same training held against each other: losses, gradient norms, and whether they drift apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

MAX_LOSS, MAX_GRAD_NORM, MAX_DRIFT = 1e-5, 1e-4, 2e-6
"""Relative differences that are allowed in float32."""

Curve = Sequence[dict[str, Any]]
"""A record a step, with `loss`, `grad_norm` and `num_trained_tokens`."""


class Difference(NamedTuple):
    """The largest relative difference of a step's loss and gradient norm, and the drift of the loss.

    The drift is the mean of the signed relative differences over the second half of the steps: noise cancels in
    it, a systematic error does not.
    """

    loss: float
    grad_norm: float
    drift: float

    @property
    def passed(self) -> bool:
        """NaN does not pass."""
        return self.loss <= MAX_LOSS and self.grad_norm <= MAX_GRAD_NORM and abs(self.drift) <= MAX_DRIFT


def difference(curve: Curve, expected: Curve) -> Difference:
    """How far `curve` is from `expected`, of the same length."""
    losses, norms = ([_relative(a[name], b[name]) for a, b in zip(curve, expected, strict=True)] for name in NAMES)
    second = losses[len(losses) // 2 :]
    return Difference(_largest(losses), _largest(norms), math.fsum(second) / len(second))


NAMES = ("loss", "grad_norm")


def same_tokens(curve: Curve, expected: Curve) -> bool:
    """Whether every step trained as many tokens as its counterpart: else the batches were not the same."""
    return [each["num_trained_tokens"] for each in curve] == [each["num_trained_tokens"] for each in expected]


def _relative(actual: float, expected: float) -> float:
    """(1.1, 1.0) is 0.1; two zeros are equal."""
    if actual == expected:
        return 0.0
    return (actual - expected) / abs(expected) if expected else math.copysign(math.inf, actual)


def _largest(values: Sequence[float]) -> float:
    """By size; NaN where one is NaN, which `max` would pass over."""
    return math.nan if any(map(math.isnan, values)) else max(map(abs, values))
