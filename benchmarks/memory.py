"""What `sftctl plan` says beside what a run takes: each way to save memory, planned and measured.

    python benchmarks/memory.py run.toml                    # two steps in every variant
    python benchmarks/memory.py run.toml --variants plain adapter

Each variant trains in a process of its own; measured is the `peak_memory_bytes` of its last record: allocated bytes
on CUDA, resident memory of the process on a CPU, which holds the libraries too. Rows are packed without cutting
("wrapped"), so that every sequence is full, as the plan has it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

PACKED = ("--packing", "--packing-strategy=wrapped", "--no-save-final", "--logging-steps=1", "--max-steps=2")
VARIANTS = {
    "plain": ("--gradient-checkpointing=false",),
    "selective": ("--gradient-checkpointing=selective",),
    "checkpointing": ("--gradient-checkpointing=true",),
    "accumulated": ("--gradient-checkpointing=false", "--gradient-accumulation-steps=2"),
    "fp32": ("--gradient-checkpointing=false", "--precision=fp32"),
    "muon": ("--gradient-checkpointing=true", "--optimizer=muon"),
    "adapter": ("--gradient-checkpointing=false", "--use-peft"),
    "adapter, checkpointing": ("--gradient-checkpointing=true", "--use-peft"),
}


def call(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "sftctl", *words], capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr)
    return done.stdout


def measured(config: str, options: tuple[str, ...], folder: Path) -> int:
    call("train", config, f"--output-dir={folder}", "--run-name=run", *PACKED, *options)
    records = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    return max(int(record.get("peak_memory_bytes", 0)) for record in records)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    chosen = parser.parse_args()
    print(f"{'variant':24}  {'planned':>8}  {'measured':>8}  ratio")
    for name in chosen.variants:
        options = VARIANTS[name]
        planned = json.loads(call("plan", chosen.config, *PACKED[:2], *options, "--format=json"))["peak_bytes"]
        with tempfile.TemporaryDirectory() as folder:
            peak = measured(chosen.config, options, Path(folder))
        print(f"{name:24}  {planned / 1e6:6.0f}MB  {peak / 1e6:6.0f}MB  {planned / peak:5.2f}", flush=True)


if __name__ == "__main__":
    main()
