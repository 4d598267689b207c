"""Numbers and sentences of a run as a person reads them, the same on a screen and in a log file."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sftctl.records import Answer, EvalReport, RunResult, StepReport


def duration(seconds: float) -> str:
    """`8 s`, `1:05`, `2:03:04`."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"


def metric(name: str, value: float) -> str:
    """A count as a whole number; else four decimals where they say something: `4,400`, `0.9525`, `1.25e-05`."""
    if "num_" in name:
        return f"{value:,.0f}"
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}"
    return f"{value:.4f}"


def size(num_bytes: float) -> str:
    """`512 B`, `1.5 MB`, `12 GB`."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while num_bytes >= 1000 and len(units) > 1:
        num_bytes /= 1000
        del units[0]
    return f"{num_bytes:.1f} {units[0]}" if num_bytes < 10 and units[0] != "B" else f"{num_bytes:.0f} {units[0]}"


def share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "-"


class Clock:
    """Time left, by the wall clock since the first step began: what happens between steps counts as they come."""

    def __init__(self, *, step: int, total_steps: int) -> None:
        self._first, self.total_steps = step, total_steps
        self._begun: float | None = None

    def seconds_left(self, report: StepReport) -> float:
        now = time.monotonic()
        if self._begun is None:
            self._begun = now - report.step_seconds
        done = max(report.step - self._first, 1)
        return (now - self._begun) / done * (self.total_steps - report.step)


def step_line(report: StepReport, *, total_steps: int, seconds_left: float) -> str:
    """`step  20/312  epoch 0.19  loss 2.3140  lr 1.9e-05  12,345 tokens/s  left 1:20`."""
    width = len(str(total_steps))
    return (
        f"step {report.step:>{width}}/{total_steps}  epoch {report.epoch:.2f}  loss {report.loss:.4f}  "
        f"lr {report.learning_rate:.3g}  {report.tokens_per_second:,.0f} tokens/s  left {duration(seconds_left)}"
    )


def evaluation_line(report: EvalReport) -> str:
    """`evaluation at step 100: loss 0.3120, exact_match 0.8125`: the metrics without their prefix, no counts."""
    figures = (
        f"{name.removeprefix('eval_')} {metric(name, value)}"
        for name, value in report.metrics.items()
        if "num_" not in name
    )
    return f"evaluation at step {report.step}: {', '.join(figures)}"


def before_and_after(reports: Sequence[EvalReport]) -> list[tuple[str, str, str]]:
    """A row for each metric: its name, its first value, its last. One evaluation has nothing before it."""
    if not reports:
        return []
    first: Mapping[str, float] = reports[0].metrics if len(reports) > 1 else {}
    return [
        (name, metric(name, first[name]) if name in first else "", metric(name, value))
        for name, value in reports[-1].metrics.items()
    ]


def sample(answers: Sequence[Answer], count: int) -> list[Answer]:
    """A few answers to show, in their order: up to a third of them wrong ones, which say most, the rest right ones."""
    wrong = [answer for answer in answers if not answer.exact]
    right = [answer for answer in answers if answer.exact]
    num_wrong = max(min(len(wrong), count // 3), count - len(right))
    chosen = {id(answer) for answer in (*wrong[:num_wrong], *right[: count - min(num_wrong, len(wrong))])}
    return [answer for answer in answers if id(answer) in chosen]


def harmless(text: str) -> str:
    """Text from data or a model without what moves a cursor or recolours a terminal: pictures (␛) in its place."""
    return text.translate(_PICTURES)


_PICTURES = {code: 0x2400 + code for code in range(0x20)} | {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def one_line(text: str, limit: int) -> str:
    """`text` on one line, cut in the middle where it is longer than `limit`: both its ends say something."""
    line = harmless(" ".join(text.split()))
    if len(line) <= limit:
        return line
    half = (limit - 3) // 2
    return f"{line[:half]} … {line[-(limit - 3 - half) :]}"


def next_steps(result: RunResult) -> list[tuple[str, str]]:
    """What one does after a run: a title and lines to copy."""
    path = shown(result.path)
    steps = []
    if (result.path / "final" / "adapter_config.json").is_file():
        loading = (
            "from peft import AutoPeftModelForCausalLM\n"
            f'model = AutoPeftModelForCausalLM.from_pretrained("{path}/final")'
        )
        steps.append(("Load the adapter on its base", loading))
        steps.append(("Merge it into its base", f"sftctl export {shlex.quote(str(path))} --merge"))
    elif (result.path / "final").is_dir():
        loading = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
            f'model = AutoModelForCausalLM.from_pretrained("{path}/final")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{path}/final")'
        )
        steps.append(("Load the model", loading))
    config = shlex.quote(f"{path}/config.toml")
    steps.append(("See every setting", f"sftctl config show {config} --changed"))
    steps.append(("Train it again", f"sftctl train {config} --run-name {shlex.quote(result.path.name + '-again')}"))
    return steps


def shown(path: Path) -> str:
    """Relative to where one stands, where that is shorter."""
    try:
        return path.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path.as_posix()
