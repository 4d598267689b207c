"""The sides of a comparison: a file, a recipe, a run directory, or the word `defaults`."""

from __future__ import annotations

import os
from collections.abc import Mapping

from sftctl.config import recipes
from sftctl.config.resolve import Resolved, resolve

DEFAULTS = "defaults"
RUN_CONFIG = "config.toml"
"""The file of a run directory that holds its resolved configuration."""


def read(side: str, *, env: Mapping[str, str] | None = None) -> Resolved:
    """What a side resolves to, for itself alone. Raises ConfigError."""
    return resolve([] if side == DEFAULTS and not os.path.exists(side) else [file_of(side)], env=env)


def file_of(side: str) -> str:
    """The file that a side is: of a run directory its configuration."""
    if not side.startswith(recipes.PREFIX) and os.path.isdir(side):
        inside = os.path.join(side, RUN_CONFIG)
        return inside if os.path.isfile(inside) else side
    return side
