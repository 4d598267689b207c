"""Who is told what happens in a run: the command line's screen, a log file, or nobody."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from sftctl.engine.data.proof import MaskProof
from sftctl.records import EvalReport, RunResult, StepReport


class Reporter(Protocol):
    """What a run tells, in the order in which it happens."""

    def stage(self, text: str) -> None: ...
    def note(self, text: str) -> None: ...
    def proof(self, proof: MaskProof) -> None: ...
    def started(self, *, path: Path, step: int, total_steps: int) -> None: ...
    def step(self, report: StepReport) -> None: ...
    def evaluated(self, report: EvalReport) -> None: ...
    def saved(self, path: Path) -> None: ...
    def finished(self, result: RunResult) -> None: ...


class Silent:
    """Tells nobody."""

    def stage(self, text: str) -> None: ...
    def note(self, text: str) -> None: ...
    def proof(self, proof: MaskProof) -> None: ...
    def started(self, *, path: Path, step: int, total_steps: int) -> None: ...
    def step(self, report: StepReport) -> None: ...
    def evaluated(self, report: EvalReport) -> None: ...
    def saved(self, path: Path) -> None: ...
    def finished(self, result: RunResult) -> None: ...


class Steady:
    """Tells `reporter`, until the system refuses: a pipe whose reader left, a terminal that was closed.

    What is days of work must not end in the middle for that. It is told to `gone`, once, and from then on nobody
    is told anything.
    """

    def __init__(self, reporter: Reporter, *, gone: Callable[[], None]) -> None:
        self._reporter = reporter
        self._gone = gone

    def _tell(self, tell: Callable[[Reporter], None]) -> None:
        try:
            tell(self._reporter)
        except OSError:
            self._reporter = Silent()
            self._gone()

    def stage(self, text: str) -> None:
        self._tell(lambda reporter: reporter.stage(text))

    def note(self, text: str) -> None:
        self._tell(lambda reporter: reporter.note(text))

    def proof(self, proof: MaskProof) -> None:
        self._tell(lambda reporter: reporter.proof(proof))

    def started(self, *, path: Path, step: int, total_steps: int) -> None:
        self._tell(lambda reporter: reporter.started(path=path, step=step, total_steps=total_steps))

    def step(self, report: StepReport) -> None:
        self._tell(lambda reporter: reporter.step(report))

    def evaluated(self, report: EvalReport) -> None:
        self._tell(lambda reporter: reporter.evaluated(report))

    def saved(self, path: Path) -> None:
        self._tell(lambda reporter: reporter.saved(path))

    def finished(self, result: RunResult) -> None:
        self._tell(lambda reporter: reporter.finished(result))
