"""Whether two run directories hold the same run, bit for bit: what was logged, what was saved, what came out.

Times and memory are the machine's and are left out. Checkpoints are compared by the hashes in their manifests:
weights, optimiser, random generators; so nothing large is read, and no tensor is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sftctl.runs.directory import attach
from sftctl.runs.hashing import hash_file
from sftctl.runs.manifest import list_steps, read_manifest, step_folder
from sftctl.runs.metrics import read_metrics

MEASURED = frozenset({"tokens_per_second", "step_seconds", "peak_memory_bytes"})
"""Figures of the machine, which no two runs share."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was compared, and each difference in a line. `equal` says "8 records" and the like."""

    equal: tuple[str, ...]
    differences: tuple[str, ...]


def compare_runs(left: Path, right: Path) -> Comparison:
    """Compare two runs of one configuration that are over. Raises RunError where one cannot be read."""
    equal: list[str] = []
    differences: list[str] = []
    for what, found in (
        ("records of metrics.jsonl", list(_records(left, right))),
        ("files of the last checkpoint: weights, optimiser, random generators", list(_checkpoints(left, right))),
        ("files of the final model", list(_finals(left, right))),
    ):
        wrong = [difference for difference in found if difference]
        differences += wrong
        if found and not wrong:
            equal.append(f"{len(found)} {what}")
    return Comparison(tuple(equal), tuple(differences))


def _records(left: Path, right: Path) -> Iterator[str]:
    """For each pair of records what differs, or nothing."""
    mine, theirs = (list(read_metrics(attach(path).metrics)) for path in (left, right))
    if len(mine) != len(theirs):
        yield f"metrics.jsonl: {len(mine)} and {len(theirs)} records"
    for before, after in zip(mine, theirs, strict=False):
        names = [name for name in {**before, **after} if name not in MEASURED]
        changed = [name for name in names if repr(before.get(name)) != repr(after.get(name))]  # NaN equals NaN
        figures = ", ".join(f"{name} {before.get(name)!r} and {after.get(name)!r}" for name in changed)
        yield f"step {before.get('step')}: {figures}" if changed else ""


def _checkpoints(left: Path, right: Path) -> Iterator[str]:
    steps = [max(list_steps(attach(path).checkpoints), default=None) for path in (left, right)]
    if steps[0] != steps[1]:
        yield f"the last checkpoints are of steps {steps[0]} and {steps[1]}"
        return
    if steps[0] is None:
        return
    mine, theirs = (read_manifest(step_folder(attach(path).checkpoints, steps[0])).files for path in (left, right))
    for name in sorted({*mine, *theirs}):
        yield "" if mine.get(name) == theirs.get(name) else f"the checkpoint of step {steps[0]}: {name} differs"


def _finals(left: Path, right: Path) -> Iterator[str]:
    folders = [attach(path).final for path in (left, right)]
    for name in sorted({path.name for folder in folders if folder.is_dir() for path in folder.iterdir()}):
        hashes = [hash_file(folder / name) if (folder / name).is_file() else None for folder in folders]
        yield "" if hashes[0] == hashes[1] else f"final/{name} differs"
