"""What going on costs, by the size of the data set and by how far the run was.

    python benchmarks/resume.py                              # 1,000 to 300,000 rows
    python benchmarks/resume.py --rows 1000 1000000 --far 5000

For each size: a run of a small model is stopped by SIGTERM after step 2, and started again three times until its
next step ends; at the smallest size once more, stopped after step `--far`. Printed are medians: from the call of
`train` to the end of that step, and what of it was the rows, their bins and their plan, and what the checkpoint. The
first preparation of the rows is not part of it. `sftctl` runs in forks of one process (tests/faults/launcher.py), so
that starting Python and importing torch is not either.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "faults"))

from launcher import Launcher

CONFIG = """
[model]
init = "random"
tokenizer = "bytes"
architecture = {{ model_type = "llama", hidden_size = 32, intermediate_size = 64, num_hidden_layers = 2, \
num_attention_heads = 4, num_key_value_heads = 2, max_position_embeddings = 128 }}

[data]
datasets = [{{ path = "{rows}" }}]
cache_dir = "{cache}"

[sft]
max_length = 64
packing = {packing}

[train]
num_train_epochs = 1000
per_device_train_batch_size = 4
precision = "fp32"
gradient_checkpointing = false

[checkpoint]
save_steps = 1000000

[log]
logging_steps = 1000000
"""

STOP_AFTER = """
import os, signal
from sftctl.engine.driver import Course
log = Course._log
def stopping(self, report):
    log(self, report)
    if report.step == {step}:
        os.kill(os.getpid(), signal.SIGTERM)
Course._log = stopping
"""

CLOCKED = """
import json, os, time
import sftctl.engine.driver as driver
from sftctl.engine import assemble
from sftctl.engine.saving.checkpoint import Checkpointer
began, spent = time.perf_counter(), {{}}
def clocked(owner, name, label):
    call = getattr(owner, name)
    def timed(*arguments, **keywords):
        start = time.perf_counter()
        result = call(*arguments, **keywords)
        spent[label] = spent.get(label, 0.0) + time.perf_counter() - start
        return result
    setattr(owner, name, timed)
clocked(assemble, "inputs_of", "inputs")
clocked(Checkpointer, "find", "checkpoint")
clocked(Checkpointer, "load", "checkpoint")
def log(self, report):
    spent["all"] = time.perf_counter() - began
    spent["step"] = report.step
    with open({path!r}, "w") as file:
        json.dump(spent, file)
    os._exit(0)
driver.Course._log = log
"""


def write_rows(path: Path, count: int) -> None:
    draw = random.Random(5)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            terms = [draw.randrange(100) for _ in range(draw.randrange(1, 7))]
            file.write(f'{{"prompt": "{" + ".join(map(str, terms))} = ", "completion": "{sum(terms)}"}}\n')


def measure(launcher: Launcher, folder: Path, rows: int, stop_after: int, packing: str) -> dict[str, float]:
    folder.mkdir()
    write_rows(folder / "rows.jsonl", rows)
    config = folder / "run.toml"
    config.write_text(CONFIG.format(rows=folder / "rows.jsonl", cache=folder / "cache", packing=packing))
    words = ["train", str(config), "--output-dir", str(folder), "--run-name=run"]
    code, said = launcher.run(*words, patch=STOP_AFTER.format(step=stop_after))
    assert code == 3, said
    found = []
    for _ in range(3):
        code, said = launcher.run(*words, patch=CLOCKED.format(path=str(folder / "spent.json")))
        assert code == 0, said
        found.append(json.loads((folder / "spent.json").read_text()))
        assert found[-1]["step"] == stop_after + 1
    return {name: statistics.median(each[name] for each in found) for name in found[0]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000, 300_000])
    parser.add_argument("--far", type=int, default=1_000, help="a step to stop after that is further into the run")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="resume-"))
    launcher = Launcher(folder)
    print(
        "| rows | packed | stopped after step | seconds to the end of the next step | rows, bins, plan | checkpoint |"
    )
    print("|---|---|---|---|---|---|")
    try:
        cases = [(rows, 2, packing) for packing in ("true", "false") for rows in arguments.rows]
        for number, (rows, step, packing) in enumerate([*cases, (arguments.rows[0], arguments.far, "true")]):
            spent = measure(launcher, folder / str(number), rows, step, packing)
            shutil.rmtree(folder / str(number))
            print(
                f"| {rows:,} | {'yes' if packing == 'true' else 'no'} | {step:,} | {spent['all']:.3f} | "
                f"{spent['inputs']:.3f} | {spent['checkpoint']:.3f} |",
                flush=True,
            )
    finally:
        launcher.close()
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
