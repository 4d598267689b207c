"""What can go wrong for a user, and how it is said.

    SftctlError                 exit code
    ├── ConfigError             2   every problem of every layer of configuration
    ├── DataError               2   a source, a row, a column, a mask
    ├── ModelError              2   a model folder, a tokenizer, an architecture
    ├── RunError                2   a run directory that cannot be used
    ├── TrainingError           1   a loss, a gradient, memory, during the run
    └── Interrupted             3   stopped on purpose, with a checkpoint

Each carries `Problem`s: what is wrong at which place, where that came from, what to do next.
Our own invariants use `assert`; nothing here is raised for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OriginKind = Literal["default", "file", "env", "option", "set", "python", "recipe", "data"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from.

    `name` is what a user would look for: a file's path, `SFTCTL_OPTIM__LEARNING_RATE`, `--learning-rate`.
    `line` and `column` count from 1; `end_column` is exclusive; `text` is the whole source line,
    kept so that a report needs no second read of a file that may have changed.
    """

    kind: OriginKind
    name: str = ""
    line: int | None = None
    column: int | None = None
    end_column: int | None = None
    text: str | None = None

    def __str__(self) -> str:
        if self.kind == "default":
            return "default"
        if self.kind in ("env", "option", "set"):
            return self.name
        place = "".join(f":{number}" for number in (self.line, self.column) if number is not None)
        return f"{self.name}{place}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: the place (`optim.learning_rate`), the reason, the origin, the next action."""

    path: str
    message: str
    origin: Origin | None = None
    help: str | None = None
    related: tuple[Origin, ...] = ()


class SftctlError(Exception):
    """The root of everything that is a user's to mend. `exit_code` is what the command line returns."""

    exit_code: int = 1

    def __init__(self, *problems: Problem) -> None:
        assert problems, "an error says at least one thing"
        self.problems = problems
        super().__init__("\n".join(_one_line(problem) for problem in problems))


class ConfigError(SftctlError):
    """The configuration does not describe a run. Holds every problem of every layer, in source order."""

    exit_code = 2


class DataError(SftctlError):
    """A source, a row, a column or a mask is not what the configuration says it is."""

    exit_code = 2


class ModelError(SftctlError):
    """A model or tokenizer cannot be found, read, or used as asked."""

    exit_code = 2


class RunError(SftctlError):
    """A run directory cannot be made, written, resumed or exported."""

    exit_code = 2


class TrainingError(SftctlError):
    """Training had to stop: a loss or gradient that is not finite, memory that is not there."""

    exit_code = 1


class Interrupted(SftctlError):
    """The run was told to stop, and left a checkpoint to go on from."""

    exit_code = 3


def _one_line(problem: Problem) -> str:
    place = f"{problem.path}: " if problem.path else ""
    origin = f" ({problem.origin})" if problem.origin is not None else ""
    hint = f"; {problem.help}" if problem.help else ""
    return f"{place}{problem.message}{origin}{hint}"
