"""Packing side by side with TRL: the assignment of lengths to bins, and the batches made of them.

    python benchmarks/packing.py                                  # ours alone
    python benchmarks/packing.py --peer /path/to/python           # an interpreter that has trl and datasets
    python benchmarks/packing.py --peer /path/to/python --rounds 9 --json packing.json

Each side runs in a process of its own that stays alive; tasks go to ours and to the peer in turn, so both see the
same machine. The table holds medians over the rounds, of wall-clock seconds and of the process's processor seconds,
which other work on the machine disturbs less. Imports are not timed.

- assignment: lengths to bins. For the peer this is `trl.data_utils.pack_dataset` on a column of empty (null) tokens,
  so that it moves nothing: its own algorithm and its own `map`, per 1,000 rows as it always is.
- rows: lengths to bins, and the int32 tokens and labels of every bin laid side by side in memory. The peer's
  `pack_dataset` on two columns; ours `pack` and `gather`. (The peer's `wrapped` copies nothing: it keeps no
  boundaries, so its rows are slices of the columns as they are.)
- batches: to the int64 batches that a model takes, one epoch, shuffled. Ours: `pack`, `EpochPlan`, `collate`. Peer:
  `pack_dataset` and its padding-free collator in a torch DataLoader.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from sides import serve, sides

BATCH_SIZE = 8
MAX_LENGTHS = (4096, 16384)
STRATEGIES = ("bfd", "bfd_split", "wrapped")


@dataclass(frozen=True)
class Task:
    """`rows` log-normal lengths (median 400 tokens, sigma 1) to be packed, and made batches of or not."""

    kind: str
    strategy: str
    max_length: int
    rows: int

    def lengths(self) -> Any:
        drawn = np.random.default_rng(0).lognormal(np.log(400), 1.0, self.rows)
        return np.maximum(1, drawn).astype(np.int32)


@dataclass(frozen=True)
class Measured:
    """Wall-clock and processor seconds, the bins, and the tokens in them."""

    seconds: float
    cpu_seconds: float
    num_bins: int
    num_tokens: int


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.began = time.perf_counter(), time.process_time()

    def measured(self, num_bins: int, num_tokens: int) -> Measured:
        wall, cpu = time.perf_counter() - self.began[0], time.process_time() - self.began[1]
        return Measured(wall, cpu, num_bins, num_tokens)


class Flat:
    """Token ids and labels of all samples in two flat arrays: the in-memory form of a prepared store."""

    def __init__(self, lengths: Any) -> None:
        self.lengths = lengths
        self.begins = np.cumsum(lengths, dtype=np.int64) - lengths
        self.input_ids = np.random.default_rng(1).integers(0, 50_000, int(lengths.sum()), dtype=np.int32)
        self.labels = self.input_ids.copy()

    def sample(self, index: int, /) -> Any:
        return self.gather(np.array([index]), np.array([0]), self.lengths[index : index + 1])

    def gather(self, sample: Any, start: Any, length: Any, /) -> Any:
        from sftctl.records import Sample

        begins = self.begins[sample] + start
        spans = [slice(b, e) for b, e in zip(begins.tolist(), (begins + length).tolist(), strict=True)]
        return Sample(
            input_ids=np.concatenate([self.input_ids[span] for span in spans]),
            labels=np.concatenate([self.labels[span] for span in spans]),
        )


def ours_assignment(task: Task) -> Measured:
    from sftctl.engine.data.packing import pack  # the peer's process has no sftctl

    lengths = task.lengths()
    clock = Clock()
    bins = pack(lengths, task.max_length, task.strategy)
    return clock.measured(len(bins), int(bins.length.sum()))


def ours_rows(task: Task) -> Measured:
    from sftctl.engine.data.collate import gather
    from sftctl.engine.data.packing import pack

    lengths = task.lengths()
    samples = Flat(lengths)
    clock = Clock()
    bins = pack(lengths, task.max_length, task.strategy)
    rows = gather(samples, bins.sample, bins.start, bins.length)
    return clock.measured(len(bins), len(rows.input_ids))


def ours_batches(task: Task) -> Measured:
    from sftctl.engine.data.collate import collate
    from sftctl.engine.data.packing import pack
    from sftctl.engine.data.plan import EpochPlan

    lengths = task.lengths()
    samples = Flat(lengths)
    clock = Clock()
    bins = pack(lengths, task.max_length, task.strategy)
    plan = EpochPlan(bins, seed=0, epoch=0, fingerprint="", batch_size=BATCH_SIZE)
    num_tokens = 0
    for step in range(plan.num_steps):
        for chosen in plan.micro_batches(step, 0):
            num_tokens += collate(samples, plan.bins, chosen, padding_free=True, pad_token_id=0).num_tokens
    return clock.measured(len(bins), num_tokens)


def peer_assignment(task: Task) -> Measured:
    import pyarrow as pa
    from datasets import Dataset
    from trl.data_utils import pack_dataset

    lengths = task.lengths()
    offsets = pa.array(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32))
    tokens = pa.ListArray.from_arrays(offsets, pa.nulls(int(lengths.sum())))
    dataset = Dataset(pa.table({"input_ids": tokens}))
    clock = Clock()
    packed = pack_dataset(dataset, task.max_length, task.strategy)
    return clock.measured(len(packed), _peer_tokens(packed))


def peer_rows(task: Task) -> Measured:
    from trl.data_utils import pack_dataset

    dataset = _peer_dataset(task)
    clock = Clock()
    packed = pack_dataset(dataset, task.max_length, task.strategy)
    return clock.measured(len(packed), _peer_tokens(packed))


def peer_batches(task: Task) -> Measured:
    from torch.utils.data import DataLoader
    from trl.data_utils import pack_dataset
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    dataset = _peer_dataset(task)
    collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    clock = Clock()
    packed = pack_dataset(dataset, task.max_length, task.strategy)
    num_tokens = 0
    for batch in DataLoader(packed, batch_size=BATCH_SIZE, shuffle=True, collate_fn=collator):
        num_tokens += batch["input_ids"].numel()
    return clock.measured(len(packed), num_tokens)


def _peer_dataset(task: Task) -> Any:
    """The same tokens and labels as `Flat`, as two columns of lists."""
    import pyarrow as pa
    from datasets import Dataset

    lengths = task.lengths()
    flat = Flat(lengths)
    offsets = pa.array(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32))
    columns = {"input_ids": flat.input_ids, "labels": flat.labels}
    return Dataset(pa.table({name: pa.ListArray.from_arrays(offsets, pa.array(v)) for name, v in columns.items()}))


def _peer_tokens(packed: Any) -> int:
    import pyarrow.compute as pc

    return int(pc.sum(pc.list_value_length(packed.data["input_ids"])).as_py())


SIDES: dict[str, dict[str, Callable[[Task], Measured]]] = {
    "ours": {"assignment": ours_assignment, "rows": ours_rows, "batches": ours_batches},
    "peer": {"assignment": peer_assignment, "rows": peer_rows, "batches": peer_batches},
}


ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def answer(side: str, task: Mapping[str, Any]) -> dict[str, Any]:
    return asdict(SIDES[side][task["kind"]](Task(**task)))


def tasks(arguments: argparse.Namespace) -> list[Task]:
    rows = {"assignment": arguments.rows, "rows": arguments.batch_rows, "batches": arguments.batch_rows}
    return [
        Task(kind, strategy, max_length, rows[kind])
        for kind in arguments.kinds
        for strategy in arguments.strategies
        for max_length in arguments.max_lengths
    ]


def run(todo: list[Task], *, peer: str | None, rounds: int) -> list[dict[str, Any]]:
    """A record for each task and side: medians over the rounds, after one small task to warm up."""
    results: dict[tuple[Task, str], list[Measured]] = {}
    with sides(peer, script=__file__, environment=ONE_THREAD) as running:
        for kind in SIDES["ours"]:
            for side in running.values():
                side.ask(asdict(Task(kind, "bfd", 1024, 500)))
        for _ in range(rounds):
            for task in todo:
                for name, side in running.items():
                    results.setdefault((task, name), []).append(Measured(**side.ask(asdict(task))))
    return [
        {
            **asdict(task),
            "side": name,
            "seconds": statistics.median(m.seconds for m in measured),
            "cpu_seconds": statistics.median(m.cpu_seconds for m in measured),
            "num_bins": measured[0].num_bins,
            "num_tokens": measured[0].num_tokens,
            "fill": measured[0].num_tokens / (measured[0].num_bins * task.max_length),
        }
        for (task, name), measured in results.items()
    ]


def table(records: list[dict[str, Any]]) -> str:
    """Markdown: a row for each task, ours beside the peer's."""
    lines = [
        "| | strategy | max_length | rows | ours, s | peer, s | ratio | ratio, CPU s "
        "| our bins, fill | peer's bins, fill |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    ours = [record for record in records if record["side"] == "ours"]
    others = {_key(record): record for record in records if record["side"] == "peer"}
    for one in ours:
        two = others.get(_key(one))
        cells = [
            one["kind"],
            f"`{one['strategy']}`",
            f"{one['max_length']:,}",
            f"{one['rows']:,}",
            f"{one['seconds']:.4f}",
            f"{two['seconds']:.3f}" if two else "",
            f"{two['seconds'] / one['seconds']:.0f}" if two else "",
            f"{two['cpu_seconds'] / one['cpu_seconds']:.0f}" if two else "",
            f"{one['num_bins']:,}, {one['fill']:.2%}",
            f"{two['num_bins']:,}, {two['fill']:.2%}" if two else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _key(record: dict[str, Any]) -> tuple[Any, ...]:
    return record["kind"], record["strategy"], record["max_length"], record["rows"]


def machine(peer: str | None) -> str:
    """Where the figures come from, in a line."""
    model = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    versions = f"Python {platform.python_version()}, numpy {metadata.version('numpy')}"
    if peer:
        names = ("trl", "datasets", "torch")
        code = f"from importlib.metadata import version as v; print(*(n + ' ' + v(n) for n in {names}), sep=', ')"
        versions += ", " + subprocess.check_output([peer, "-c", code], text=True).strip()
    return f"{model}, {os.cpu_count()} cores, one thread; {versions}; load {os.getloadavg()[0]:.1f} at the end"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="Python interpreter that has trl, datasets and torch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=200_000, help="rows of the assignment")
    parser.add_argument("--batch-rows", type=int, default=20_000, help="rows of the batches")
    parser.add_argument("--kinds", nargs="+", choices=list(SIDES["ours"]), default=list(SIDES["ours"]))
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    parser.add_argument("--max-lengths", nargs="+", type=int, default=MAX_LENGTHS)
    parser.add_argument("--json", type=Path, help="write the records here too")
    parser.add_argument("--serve", choices=sorted(SIDES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(partial(answer, arguments.serve))
        return
    records = run(tasks(arguments), peer=arguments.peer, rounds=arguments.rounds)
    print(table(records))
    print()
    print(machine(arguments.peer))
    if arguments.json:
        arguments.json.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
