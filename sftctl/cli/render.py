"""The reporter of a run for a terminal. The only module that knows rich; imported when something is drawn.

✓ prepare the rows  1 s          stages, each with its time, a spinner while it runs
(the mask proof, a table)
━━━━━━━━━━╸        120/312  loss 0.8123  21,034 tokens/s  0:01:20 left
(before and after, held-out prompts with their answers, what to do next)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from sftctl.cli import figures
from sftctl.cli.proof_table import PROOF_COLUMNS, example_pieces, proof_rows, remarks, source_name, violation_text

if TYPE_CHECKING:
    from sftctl.engine.data.proof import Example, MaskProof
    from sftctl.records import Answer, EvalReport, RunResult, StepReport

ANSWERS_SHOWN = 6
MIN_STAGE_SECONDS = 0.5
"""Stages shorter than this are not worth a time."""


class Screen:
    """Draws a run. Use it as a context manager: whatever happens, the terminal is left as it was."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console if console is not None else Console(highlight=False)
        self._live = Live(console=self._console, refresh_per_second=8, transient=True)
        self._stage: tuple[str, float] | None = None
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._clock = figures.Clock(step=0, total_steps=0)
        self._evaluations: list[EvalReport] = []

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_stage(failed=kind is not None)
        self._progress = None
        self._refresh()
        self._live.stop()

    def stage(self, text: str) -> None:
        self._end_stage()
        self._stage = (text, time.monotonic())
        self._refresh()

    def note(self, text: str) -> None:
        self._print(Text.assemble(("note: ", "yellow"), figures.harmless(text)))

    def proof(self, proof: MaskProof) -> None:
        self._end_stage()
        table = _table("What is trained, and some rows of it: bold text trains", *PROOF_COLUMNS)
        for row in proof_rows(proof):
            table.add_row(*row, style="dim" if row[0].startswith(" ") else "")
        self._print(table)
        for source in proof.sources:
            for line in remarks(source):
                self._print(Text.assemble(("note: ", "yellow"), figures.harmless(f"{source_name(source)}: {line}")))
            for example in source.examples:
                self._print(_example(example))
        for problem in proof.violations:
            self._print(Text.assemble(("mask problem: ", "bold red"), figures.harmless(violation_text(problem))))

    def started(self, *, path: Path, step: int, total_steps: int) -> None:
        self._end_stage()
        self._print_to_copy(Text.assemble(("run directory ", "dim"), figures.shown(path)))
        self._progress = Progress(
            BarColumn(bar_width=None),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.description}"),
            console=self._console,
            expand=True,
        )
        self._task = self._progress.add_task("", total=total_steps, completed=step)
        self._clock = figures.Clock(step=step, total_steps=total_steps)
        self._refresh()

    def step(self, report: StepReport) -> None:
        assert self._progress is not None, "a run starts before it steps"
        assert self._task is not None
        left = figures.duration(self._clock.seconds_left(report))
        text = f"loss {report.loss:.4f}  {report.tokens_per_second:,.0f} tokens/s  {left} left"
        self._progress.update(self._task, completed=report.step, description=text)

    def evaluated(self, report: EvalReport) -> None:
        self._end_stage()
        self._evaluations.append(report)
        self._print(Text(figures.evaluation_line(report)))

    def saved(self, path: Path) -> None:
        self._print_to_copy(Text(f"saved {figures.shown(path)}", style="dim"))

    def finished(self, result: RunResult) -> None:
        self._end_stage()
        self._progress = None
        self._refresh()
        rows = figures.before_and_after(self._evaluations)
        if rows and len(self._evaluations) > 1:
            table = _table("Held-out rows", "metric", ">before", ">after")
            for row in rows:
                table.add_row(*row)
            self._print(table)
        if result.answers:
            self._print(_answers(result.answers))
        self._print_to_copy(
            Text.assemble(
                "\n", ("Done. ", "bold green"), f"{result.steps} steps, run directory {figures.shown(result.path)}"
            )
        )
        for title, lines in figures.next_steps(result):
            self._print(Text(f"\n{title}", style="bold"))
            self._print_to_copy(Text("\n".join(f"  {line}" for line in lines.splitlines())))

    def _end_stage(self, *, failed: bool = False) -> None:
        if self._stage is None:
            return
        (text, begun), self._stage = self._stage, None
        seconds = time.monotonic() - begun
        took = f"  {figures.duration(seconds)}" if seconds >= MIN_STAGE_SECONDS else ""
        mark = ("✗ ", "red") if failed else ("✓ ", "green")
        self._print(Text.assemble(mark, text, (took, "dim")))
        self._refresh()

    def _refresh(self) -> None:
        parts: list[RenderableType] = []
        if self._stage is not None:
            parts.append(Spinner("dots", Text(f"{self._stage[0]} …")))
        if self._progress is not None:
            parts.append(self._progress)
        self._live.update(Group(*parts), refresh=True)

    def _print(self, what: RenderableType) -> None:
        self._console.print(what)

    def _print_to_copy(self, text: Text) -> None:
        """Lines that someone will copy: the terminal may break them, we must not."""
        self._console.print(text, soft_wrap=True)


def _table(title: str, *columns: str) -> Table:
    """A table without outer lines; a column whose name begins with > holds numbers, to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name.removeprefix(">"), justify="right" if name.startswith(">") else "left", overflow="fold")
    return table


def _answers(answers: Sequence[Answer]) -> Table:
    right = sum(answer.exact for answer in answers)
    title = f"Held-out prompts, {right:,} of {len(answers):,} answered exactly; some of both kinds"
    table = _table(title, "", "prompt", "answer", "expected")
    for each in figures.sample(answers, ANSWERS_SHOWN):
        mark = Text("✓", style="green") if each.exact else Text("✗", style="red")
        shown = [figures.one_line(text, 200) for text in (each.prompt, each.answer, each.reference)]
        table.add_row(mark, Text(shown[0]), Text(shown[1]), Text("" if each.exact else shown[2]))
    return table


def _example(example: Example) -> Padding:
    """A row as the model sees it, what it trains in colour."""
    parts = [(text, "bold green" if trained else "dim") for text, trained in example_pieces(example)]
    return Padding(Text.assemble((f"row {example.row}  ", "cyan"), *parts), (0, 2, 1, 2))
