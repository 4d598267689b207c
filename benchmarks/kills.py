"""Kill a run at random moments for as long as you ask, and compare what it becomes with the run nobody killed.

    python benchmarks/kills.py --minutes 10
    python benchmarks/kills.py --kills 50                                       until there were that many
    python benchmarks/kills.py --minutes 60 --steps 500 --config mine.toml      your own configuration
    python benchmarks/kills.py -- --no-packing --no-async-save                  settings, as of `sftctl train`

One run goes to its end undisturbed. Then runs of the same configuration are started, killed with SIGKILL at a
random moment and started again, until they end; each is compared with the first: every record of metrics.jsonl
but for its times, and every byte of the final weights. Moments are drawn from all of a run's life: the claim of
its directory, the preparation of the rows (each run has a cache of its own), the resume, the steps, the saves, the
final model; what a kill left on the disk tells which it hit. The exit code is 1 where anything differs or a complete
checkpoint was lost. `sftctl` runs in forks of one process (tests/faults/launcher.py).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "faults"))

from launcher import Launcher

TIMES = {"tokens_per_second", "step_seconds", "peak_memory_bytes"}

CONFIG = """
[model]
init = "random"
tokenizer = "bytes"

[model.architecture]
model_type = "llama"
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
attention_dropout = 0.1

[data]
datasets = [{{ path = "{rows}" }}]
test_split_size = 4

[sft]
max_length = 64
packing = true

[train]
per_device_train_batch_size = 3
gradient_accumulation_steps = 2
precision = "fp32"
gradient_checkpointing = false

[eval]
eval_steps = 7

[checkpoint]
save_steps = 1
save_total_limit = 2

[log]
logging_steps = 1
"""


@dataclass
class Tally:
    """What was counted. `differences` holds a line for each."""

    kills: Counter[str] = field(default_factory=Counter)
    """By where they hit."""
    resumes: int = 0
    runs: int = 0
    records: int = 0
    losses: int = 0
    weights: int = 0
    """Bytes of final weights compared."""
    differences: list[str] = field(default_factory=list)

    def line(self) -> str:
        return (
            f"{self.kills.total()} kills, {self.resumes} resumes from a checkpoint, {self.runs} runs to their end, "
            f"{self.losses} losses in {self.records} records compared, {len(self.differences)} differences"
        )


def write_config(folder: Path) -> Path:
    """Forty sums, and a model that takes a step in milliseconds."""
    draw, rows = random.Random(3), folder / "sums.jsonl"
    with rows.open("w", encoding="utf-8") as file:
        for _ in range(40):
            terms = [draw.randrange(100) for _ in range(draw.randrange(1, 7))]
            row = {"prompt": " + ".join(map(str, terms)) + " = ", "completion": str(sum(terms))}
            file.write(json.dumps(row) + "\n")
    path = folder / "kills.toml"
    path.write_text(CONFIG.format(rows=rows), encoding="utf-8")
    return path


def records(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def newest(run: Path) -> int:
    """The step of the newest checkpoint under its final name; 0 for none."""
    names = os.listdir(run / "checkpoints") if (run / "checkpoints").is_dir() else []
    return max((int(name.removeprefix("step-")) for name in names if name.startswith("step-")), default=0)


def kill_until_it_ends(launcher: Launcher, words: list[str], run: Path, draw: random.Random, tally: Tally) -> None:
    """Start, kill, start again. A life is as long as it takes to reach a new checkpoint, times up to two."""
    reached, life = 0, 2.0
    while True:
        started = launcher.start(*words)
        began = time.monotonic()
        limit = draw.uniform(0, 2 * life)
        while started.is_running() and time.monotonic() - began < limit:
            time.sleep(0.002)
            if newest(run) > reached:
                life, reached = time.monotonic() - began, newest(run)
        if started.is_running():
            started.send(signal.SIGKILL)
        code = started.wait()
        if newest(run) < reached:
            tally.differences.append(f"{run}: checkpoint {reached} was there and is lost")
        reached = newest(run)
        if code != -signal.SIGKILL:
            if code != 0:
                tally.differences.append(f"{run}: exit code {code}\n{started.said}")
            return
        tally.kills[where_it_hit(run)] += 1


def where_it_hit(run: Path) -> str:
    """What the process was at, from what it left."""
    if not (run / "state.json").exists():
        return "before its directory was there"
    if list(run.glob(".final.*")) or (run / "final").exists():
        return "in the final model"
    if list((run / "checkpoints").glob(".step-*.writing")):
        return "in a save"
    if list((run / "checkpoints").glob(".step-*.removing")):
        return "in the removal of an old checkpoint"
    state = json.loads((run / "state.json").read_text(encoding="utf-8"))
    return "in the preparation" if state["phase"] == "preparing" else "between two saves, or in a resume"


def compare(run: Path, whole: Path, tally: Tally) -> None:
    mine, theirs = records(run), records(whole)
    tally.records += len(theirs)
    tally.losses += sum("loss" in record or "eval_loss" in record for record in theirs)
    if len(mine) != len(theirs):
        tally.differences.append(f"{run}: {len(mine)} records and not {len(theirs)}")
    for left, right in zip(mine, theirs, strict=False):
        if left != right:
            tally.differences.append(f"{run}: {left} and not {right}")
    for path in sorted((whole / "final").glob("*.safetensors")):
        tally.weights += path.stat().st_size
        if (run / "final" / path.name).read_bytes() != path.read_bytes():
            tally.differences.append(f"{run}: {path.name} differs")
    tally.resumes += json.loads((run / "state.json").read_text(encoding="utf-8"))["resumes"]
    tally.runs += 1


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument(
        "--kills", type=int, help="end after the run in which there were so many, however long it takes"
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--config", type=Path, help="a configuration to use instead of the small built-in one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("settings", nargs="*", help="after '--': options of sftctl train, for all runs alike")
    return parser.parse_args()


def main() -> int:
    arguments = options()
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    launcher, tally, draw = Launcher(folder), Tally(), random.Random(arguments.seed)
    config = arguments.config or write_config(folder)
    common = ["train", str(config), "--output-dir", str(folder / "runs"), f"--max-steps={arguments.steps}"]
    common += arguments.settings
    code, said = launcher.run(*common, "--run-name=whole")
    assert code == 0, said
    deadline = time.monotonic() + 60 * arguments.minutes
    while time.monotonic() < deadline if arguments.kills is None else tally.kills.total() < arguments.kills:
        run, cache = folder / "runs" / f"run-{tally.runs + 1}", folder / "cache"
        own = [f"--run-name={run.name}", f"--cache-dir={cache}"]
        kill_until_it_ends(launcher, [*common, *own], run, draw, tally)
        if not tally.differences:
            compare(run, folder / "runs" / "whole", tally)
            shutil.rmtree(run)
            shutil.rmtree(cache)
        print(tally.line(), flush=True)
        if tally.differences:
            print("\n".join(tally.differences), f"\nleft to look at: {folder}", sep="\n")
            return 1
    launcher.close()
    shutil.rmtree(folder)
    for where, count in tally.kills.most_common():
        print(f"{count:6} kills {where}")
    print(f"{tally.weights} bytes of final weights compared; differences: none")
    return 0


if __name__ == "__main__":
    sys.exit(main())
