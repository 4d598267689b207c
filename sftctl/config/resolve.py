"""The front door: sources -> layers -> one strict, frozen Bundle with the origin of every leaf.

Priority, low to high: defaults, files (left to right, each after what it extends), environment, options,
overrides of a Python caller. Every problem of every layer is in the one ConfigError that is raised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from sftctl.config.schema import Bundle
from sftctl.config.sources.options import Assignment
from sftctl.errors import Origin, Problem


@attrs.frozen
class Shadowed:
    """A value that a later source replaced, and where it stands."""

    value: Any
    origin: Origin


@attrs.frozen
class Node:
    """A leaf's value, where it came from, and what it shadows (nearest first, the default last)."""

    path: str
    value: Any
    origin: Origin
    shadowed: tuple[Shadowed, ...] = ()


@attrs.frozen
class Resolved:
    """A bundle, the node of every leaf (`env.NAME` among them), what was noticed but is no error, and a digest."""

    bundle: Bundle
    nodes: Mapping[str, Node]
    notes: tuple[Problem, ...]
    digest: str


def resolve(
    files: Sequence[str | Path] = (),
    *,
    env: Mapping[str, str] | None = None,
    options: Sequence[Assignment] = (),
    overrides: Mapping[str, Any] | None = None,
    plugins: Sequence[str] = (),
) -> Resolved:
    """One bundle out of files, environment, options and overrides.

    `files`: paths, or `recipe:NAME`. `env`: the environment, or None to leave it aside. Raises ConfigError
    with all problems of all sources.
    """
    raise NotImplementedError
