"""Bounds of leaves, as attrs validators that can also be read: by `explain`, the help and the JSON Schema."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import attrs


@attrs.frozen
class Limit:
    """`low <= value <= high`, or strictly above / below with `open_low` / `open_high`. None passes.

    For a tuple every element is held to it. Numbers must be finite: NaN and infinity are never a setting.
    """

    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False

    def __call__(self, instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        for item in value if isinstance(value, tuple) else (value,):
            reason = self.refuse(item)
            if reason is not None:
                raise ValueError(reason)

    def refuse(self, value: Any) -> str | None:
        """The reason why `value` is out of bounds, or None."""
        if value is None or isinstance(value, str):
            return None
        if not math.isfinite(value):
            return f"must be a finite number, got {value}"
        below = self.low is not None and (value <= self.low if self.open_low else value < self.low)
        above = self.high is not None and (value >= self.high if self.open_high else value > self.high)
        return f"must be {self}, got {value!r}" if below or above else None

    def __str__(self) -> str:
        parts = []
        if self.low is not None:
            parts.append(f"{'>' if self.open_low else '>='} {_number(self.low)}")
        if self.high is not None:
            parts.append(f"{'<' if self.open_high else '<='} {_number(self.high)}")
        return " and ".join(parts) or "a finite number"


def _number(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else f"{bound:g}"


FINITE = Limit()
POSITIVE = Limit(low=0, open_low=True)
AT_LEAST_0 = Limit(low=0)
AT_LEAST_1 = Limit(low=1)
PROBABILITY = Limit(low=0, high=1)
BELOW_1 = Limit(low=0, high=1, open_high=True)


@attrs.frozen
class NotEmpty:
    """A string, or each string of a tuple, that must say something."""

    def __call__(self, instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        items: Iterable[object] = value if isinstance(value, tuple) else (value,)
        if any(isinstance(item, str) and not item.strip() for item in items):
            raise ValueError("must not be empty")


NOT_EMPTY = NotEmpty()
