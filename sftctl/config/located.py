"""Where the setting that a later room complains of was set: a model that is not there, a source that has no rows.

The rooms behind the configuration name a leaf (`model.name_or_path`, `data.datasets[1].path`) and know no files;
the line that set it is known here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from sftctl.config.resolve import Resolved
from sftctl.errors import Origin, Problem


def located(problems: Sequence[Problem], resolved: Resolved) -> tuple[Problem, ...]:
    """The problems, those of a leaf that someone set with its origin; the others as they are."""
    return tuple(_located(problem, resolved) for problem in problems)


def _located(problem: Problem, resolved: Resolved) -> Problem:
    leaf, *inside = _steps(problem.path)
    if _is_exact(problem.origin) or leaf not in resolved.facts.items:
        return problem
    return dataclasses.replace(problem, origin=resolved.facts.origin(leaf, *inside))


def _is_exact(origin: Origin | None) -> bool:
    """A source of rows without a line says no more than its name, which the setting's own line shows."""
    return origin is not None and (origin.kind != "data" or origin.line is not None)


def _steps(path: str) -> tuple[str, *tuple[str | int, ...]]:
    """("data.datasets", 1, "path") of "data.datasets[1].path"."""
    leaf, _, inside = path.partition("[")
    steps = re.findall(r"(\d+)\]|([^.\[\]]+)", inside)
    return (leaf, *(int(index) if index else name for index, name in steps))
