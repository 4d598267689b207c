"""The reporter of a run for a log file or a pipe: plain lines, one a logged step, no control characters."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from sftctl.cli import figures
from sftctl.cli.proof_table import proof_lines
from sftctl.cli.terminal import write

if TYPE_CHECKING:
    from sftctl.engine.data.proof import MaskProof
    from sftctl.records import EvalReport, RunResult, StepReport

ANSWERS_SHOWN = 6


class Lines:
    """Says what happens, a line at a time, each flushed so that `tail -f` and a batch system show it at once."""

    def __init__(self, *, logging_steps: int) -> None:
        self._logging_steps = logging_steps
        self._clock = figures.Clock(step=0, total_steps=0)
        self._evaluations: list[EvalReport] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def stage(self, text: str) -> None:
        self._say(f"{text} …")

    def note(self, text: str) -> None:
        self._say(f"note: {text}")

    def proof(self, proof: MaskProof) -> None:
        for line in proof_lines(proof):
            self._say(line)

    def started(self, *, path: Path, step: int, total_steps: int) -> None:
        self._clock = figures.Clock(step=step, total_steps=total_steps)
        self._say(f"training: steps {step + 1} to {total_steps}, run directory {figures.shown(path)}")

    def step(self, report: StepReport) -> None:
        left, total = self._clock.seconds_left(report), self._clock.total_steps
        if report.step % self._logging_steps == 0 or report.step in (1, total):
            self._say(figures.step_line(report, total_steps=total, seconds_left=left))

    def evaluated(self, report: EvalReport) -> None:
        self._evaluations.append(report)
        self._say(figures.evaluation_line(report))

    def saved(self, path: Path) -> None:
        self._say(f"saved {figures.shown(path)}")

    def finished(self, result: RunResult) -> None:
        if len(self._evaluations) > 1:
            for name, before, after in figures.before_and_after(self._evaluations):
                self._say(f"{name}: {before or '-'} before, {after} after")
        if result.answers:
            right = sum(answer.exact for answer in result.answers)
            self._say(f"held-out prompts: {right:,} of {len(result.answers):,} answered exactly; some of both kinds:")
        for answer in figures.sample(result.answers, ANSWERS_SHOWN):
            verdict = "right" if answer.exact else f"expected {figures.one_line(answer.reference, 60)}"
            self._say(f"prompt: {figures.one_line(answer.prompt, 100)}")
            self._say(f"answer: {figures.one_line(answer.answer, 100)} ({verdict})")
        self._say(f"finished: {result.steps} steps, run directory {figures.shown(result.path)}")
        for title, lines in figures.next_steps(result):
            self._say(f"{title}:")
            for line in lines.splitlines():
                self._say(f"    {line}")

    def _say(self, line: str) -> None:
        write(figures.harmless(line))
        sys.stdout.flush()
