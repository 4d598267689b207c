"""TRL's names."""

from __future__ import annotations


def hint(name: str) -> str | None:
    return None
