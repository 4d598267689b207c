"""What starting costs: CPU time of whole processes, as multiples of `python -c pass` in the same run.

Ratios of CPU time hold on a busy machine where seconds do not. The commands take turns, so that a slow minute
meets all of them alike; the figure is the median over the rounds. Bytecode is cached, as in any installed
package: a first round that does not count writes what is missing. Each process has the limit that the project
holds itself to; the exit code is 1 where one is above it.

    python benchmarks/startup.py                              ours
    python benchmarks/startup.py --trl /path/to/python        beside `trl sft --help` of that environment
    python benchmarks/startup.py --markdown                   the table of docs/reference/startup.md
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BASE_TOML = """\
[model]
name_or_path = "some/model"

[sft]
max_length = 2048
packing = true

[optim]
learning_rate = 1e-5
betas = [0.9, 0.95]

[[data.datasets]]
path = "some/rows"
"""

OVER_TOML = """\
[optim]
learning_rate = 2e-5
lr_scheduler_type = "cosine"

[train]
max_steps = 100
"""

NINE_PROBLEMS = """\
[optim]
learning_rate = "2e-5"
shedule = "cosine"
betas = [0.9]
weight_decay = -1

[sft]
max_length = 1.5
packing = "yes"
loss_type = "nl"

[train]
max_steps = true
precision = "fp8"
"""


@dataclass(frozen=True)
class Case:
    """A process to time, and the largest multiple of `python -c pass` that is good enough."""

    name: str
    command: Sequence[str]
    limit: float | None = None
    exit_code: int = 0


def cases(folder: Path, *, trl: str | None) -> list[Case]:
    base, over, bad = (folder / name for name in ("base.toml", "over.toml", "bad.toml"))
    for path, text in ((base, BASE_TOML), (over, OVER_TOML), (bad, NINE_PROBLEMS)):
        path.write_text(text, encoding="utf-8")
    sftctl = str(Path(sys.executable).with_name("sftctl"))
    show = [sftctl, "config", "show", str(base), str(over), "--weight-decay", "0.1", "--no-packing", "--origin"]
    found = [
        Case("`python -c pass`", [sys.executable, "-c", "pass"]),
        Case("`sftctl config show`, two files, environment, options", show, limit=12),
        Case("`sftctl train --help`", [sftctl, "train", "--help"], limit=20),
        Case("a report of nine problems", [sftctl, "config", "check", str(bad)], limit=13, exit_code=2),
    ]
    if trl is not None:
        found.append(Case("`trl sft --help`", [str(Path(trl).with_name("trl")), "sft", "--help"]))
    return found


def cpu_seconds(case: Case) -> float:
    """User and system time of one process, its output thrown away."""
    environment = {**os.environ, "SFTCTL_RUN__SEED": "7", "NO_COLOR": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    away = [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_WRONLY, 0) for stream in (1, 2)]
    process = os.posix_spawn(case.command[0], list(case.command), environment, file_actions=away)
    _, status, usage = os.wait4(process, 0)
    code = os.waitstatus_to_exitcode(status)
    if code != case.exit_code:
        raise SystemExit(f"{' '.join(case.command)} ended with {code}, not {case.exit_code}")
    return usage.ru_utime + usage.ru_stime


def measure(every: Sequence[Case], *, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each case, by its name. The first round fills caches and does not count."""
    seconds: dict[str, list[float]] = {case.name: [] for case in every}
    for round_number in range(rounds + 1):
        for case in every:
            took = cpu_seconds(case)
            if round_number:
                seconds[case.name].append(took)
    return seconds


def rows(every: Sequence[Case], seconds: dict[str, list[float]]) -> list[tuple[str, ...]]:
    """Name, milliseconds, median ratio to the first case of the same round, limit."""
    base = seconds[every[0].name]
    table = []
    for case in every:
        ratio = statistics.median(own / other for own, other in zip(seconds[case.name], base, strict=True))
        milliseconds = 1000 * statistics.median(seconds[case.name])
        limit = f"×{case.limit:g}" if case.limit is not None else ""
        table.append((case.name, f"{milliseconds:.0f} ms", f"×{ratio:.1f}", limit))
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--trl", metavar="PYTHON", help="a python whose environment has TRL")
    parser.add_argument("--markdown", action="store_true", help="print a table for the docs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        every = cases(Path(folder), trl=options.trl)
        table = rows(every, measure(every, rounds=options.rounds))
    head = ("process", "CPU time", "against `python -c pass`", "limit")
    if options.markdown:
        print("\n".join("| " + " | ".join(row) + " |" for row in (head, ("---", "---:", "---:", "---:"), *table)))
    else:
        widths = [max(len(row[column]) for row in (head, *table)) for column in range(len(head))]
        for row in (head, *table):
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    limits = [case.limit for case in every]
    slow = [row[0] for row, limit in zip(table, limits, strict=True) if limit is not None and float(row[2][1:]) > limit]
    for name in slow:
        print(f"above its limit: {name}", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    raise SystemExit(main())
