"""Training throughput and memory, ours beside TRL's: the same model, rows, batches, precision and optimiser.

    python benchmarks/throughput.py --model MODEL --rows gsm8k.jsonl                        ours alone
    python benchmarks/throughput.py --model MODEL --rows gsm8k.jsonl --trl PYTHON           beside TRL, in one run
    python benchmarks/throughput.py --tiny --trl PYTHON                                     where overhead is all
    ... --json curves.json --figure curves.svg                                              curves, kept and drawn

Each side is a process of its own: ours through `sftctl.load` and `sftctl.train` as any user has it (the
configuration is printed), TRL by its SFTTrainer in the interpreter given (throughput_trl.py), three times:

TRL, packed         with the settings that make it fastest here, among them no gradient checkpointing
TRL, not packed     the same settings, the same number of documents a step, padded
TRL, its defaults   all that the task does not fix (model, rows, max_length, precision, steps, optimiser, float32
                    weights) as SFTConfig has it: 8 rows a step, padded, gradient checkpointing on

Rows are questions and answers, of which the answers train. Rows are not shuffled, so that ours
and the packed peer train the same bins in the same order (both pack best-fit decreasing): their losses are to be
the same curve. Sums are compared, since TRL trains the line feed after a turn's end too, which is certain and makes
means smaller; a difference beyond --tolerance ends in exit code 1.

tokens/s      real tokens (no padding) over the steady steps: all but the first `--warmup`, by the clock
processor s   of all threads: what it costs where others run too, which tokens/s does not say
peak MB       of the process from its start (VmHWM), on CUDA of allocated device memory
share         of the matrix rate: the products any exact training needs (6 x backbone weights x tokens, 6 x head x
              supervised tokens; attention's own left out) per second, of what a square product reaches here
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from throughput_inputs import make_tiny, write_rows

HERE = Path(__file__).parent
OURS, PACKED, PLAIN, DEFAULT = "ours", "TRL, packed", "TRL, not packed", "TRL, its defaults"

CONFIG = """\
[model]
name_or_path = "{model}"

[[data.datasets]]
path = "{rows}"

[data]
shuffle = false

[sft]
max_length = {max_length}
packing = true

[optim]
learning_rate = {learning_rate}
lr_scheduler_type = "constant"

[train]
max_steps = {steps}
per_device_train_batch_size = {batch_size}
precision = "{precision}"
gradient_checkpointing = {gradient_checkpointing}
torch_compile = {torch_compile}

[run]
seed = {seed}
output_dir = "{folder}"
run_name = "ours"

[checkpoint]
save_final = false
save_steps = 1000000
"""


@dataclass(frozen=True)
class Side:
    """One process's run. `tokens` and `trained` are sums up to each step."""

    name: str
    ends: list[float]
    processor: list[float]
    losses: list[float]
    tokens: list[int]
    trained: list[int]
    peak_bytes: int
    settings: dict[str, Any]
    versions: dict[str, str]

    def per_second(self, counts: list[int] | None, *, warmup: int) -> float:
        """Of a running sum (none: of steps), over the steps after the first `warmup`."""
        seconds = self.ends[-1] - self.ends[warmup - 1]
        done = len(self.ends) - warmup if counts is None else counts[-1] - counts[warmup - 1]
        return done / seconds

    @property
    def summed_losses(self) -> list[float]:
        """Of each step: does not change where one side trains more tokens that are certain anyway."""
        counts = (after - before for before, after in pairwise([0, *self.trained]))
        return [loss * count for loss, count in zip(self.losses, counts, strict=False)]

    def processor_seconds(self, *, warmup: int) -> float:
        """Per 1,000 tokens, of all threads: what it costs where others run too."""
        done = self.tokens[len(self.processor) - 1] - self.tokens[warmup - 1]
        return 1000 * (self.processor[-1] - self.processor[warmup - 1]) / done


# ---------------------------------------------------------------------- our side


class Clock:
    """A reporter of `sftctl.train` that looks at the clock after each step."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.processor: list[float] = []
        self.reports: list[Any] = []

    def step(self, report: Any) -> None:
        self.ends.append(time.perf_counter())
        self.processor.append(time.process_time())
        self.reports.append(report)

    def note(self, text: str) -> None:
        print(f"  {text}", file=sys.stderr)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def serve_ours(task: dict[str, Any]) -> dict[str, Any]:
    import sftctl

    clock = Clock()
    sftctl.train(sftctl.load(task["config"]), reporter=clock)
    last = clock.reports[-1]
    return {
        "ends": clock.ends,
        "processor": clock.processor,
        "losses": [report.loss for report in clock.reports],
        "tokens": [report.num_tokens for report in clock.reports],
        "trained": [report.num_trained_tokens for report in clock.reports],
        "peak_bytes": last.peak_memory_bytes,
        "settings": {},
        "versions": {name: version(name) for name in ("sftctl", "transformers", "torch")},
    }


# ---------------------------------------------------------------------- the matrix rate


def serve_rate(task: dict[str, Any]) -> dict[str, Any]:
    """FLOP/s of a square product in the precision that is trained: the fastest repetition of several sizes.

    Asked before the first side and after the last, of which the better counts: a disturbed rate flatters shares.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if task["precision"] == "bf16" else torch.float32
    best = 0.0
    for size in (4096, 8192, 16384) if device == "cuda" else (1024, 1536, 2048):
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        seconds = []
        for _ in range(25):
            began = time.perf_counter()
            torch.mm(left, right)
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        best = max(best, 2 * size**3 / min(seconds))
    where = torch.cuda.get_device_name() if device == "cuda" else cpu_name()
    return {"flops": best, "device": where, "threads": torch.get_num_threads(), "shape": model_shape(task["model"])}


def model_shape(folder: str) -> dict[str, int]:
    """Weights of the backbone's matrices, and of the head."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    head = model.get_output_embeddings().weight
    embedding = model.get_input_embeddings().weight
    matrices = [p for p in model.parameters() if p.ndim == 2 and p is not head and p is not embedding]
    return {"backbone": sum(p.numel() for p in matrices), "head": head.numel()}


def cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


SERVE = {"ours": serve_ours, "rate": serve_rate}


# ---------------------------------------------------------------------- the run


def in_process(command: list[str], task: dict[str, Any], folder: Path, name: str) -> dict[str, Any]:
    """Run one side and read its result. What it prints goes to a file, whose end is shown if it fails."""
    path, result, said = (folder / f"{name}.{kind}" for kind in ("task", "json", "log"))
    path.write_text(json.dumps(task | {"result": str(result)}), encoding="utf-8")
    with said.open("w", encoding="utf-8") as log:
        code = subprocess.call([*command, str(path)], stdout=log, stderr=subprocess.STDOUT, env=quiet())
    if code:
        raise SystemExit(f"{name} ended with {code}:\n{said.read_text(encoding='utf-8')[-3000:]}")
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def quiet() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def measure(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[Side], str]:
    """Matrix rate, sides, our configuration."""
    model = folder / "tiny" if options.tiny else options.model
    if options.tiny:
        make_tiny(model)
    rows = folder / "rows.jsonl"
    count = write_rows(options.rows, rows, count=options.num_rows)
    task = {
        "model": str(model), "rows": str(rows), "folder": str(folder), "steps": options.steps, "seed": 0,
        "max_length": options.max_length, "batch_size": options.batch_size, "precision": options.precision,
        "learning_rate": options.learning_rate, "packing": True, "defaults": False,
    }  # fmt: skip
    config = folder / "ours.toml"
    flags = {name: str(getattr(options, name)).lower() for name in ("gradient_checkpointing", "torch_compile")}
    config.write_text(CONFIG.format_map(task | flags), encoding="utf-8")
    own = [sys.executable, __file__, "--serve"]
    rate = in_process([*own, "rate"], task, folder, "rate")
    sides = {OURS: in_process([*own, "ours"], task | {"config": str(config)}, folder, "ours")}
    if options.trl:
        command = [options.trl, str(HERE / "throughput_trl.py")]
        sides[PACKED] = in_process(command, task, folder, "packed")
        if options.default_steps:
            documents = round(count / options.steps)
            plain = task | {"packing": False, "batch_size": documents, "steps": options.default_steps}
            sides[PLAIN] = in_process(command, plain, folder, "plain")
            sides[DEFAULT] = in_process(command, plain | {"defaults": True}, folder, "default")
    rate["flops"] = max(rate["flops"], in_process([*own, "rate"], task, folder, "rate again")["flops"])
    return rate, [Side(name, **found) for name, found in sides.items()], config.read_text(encoding="utf-8")


# ---------------------------------------------------------------------- what it says


def table(sides: list[Side], rate: dict[str, Any], *, warmup: int) -> str:
    lines = [
        "| | tokens/s | steps/s | processor s per 1,000 tokens | peak MB | share of the matrix rate "
        "| tokens/s, ours to this | peak, ours to this |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    ours = sides[0]
    for side in sides:
        speed = side.per_second(side.tokens, warmup=warmup)
        shape = rate["shape"]
        flops = 6 * shape["backbone"] * speed + 6 * shape["head"] * side.per_second(side.trained, warmup=warmup)
        cells = (
            side.name,
            f"{speed:,.0f}",
            f"{side.per_second(None, warmup=warmup):.3g}",
            f"{side.processor_seconds(warmup=warmup):.3g}",
            f"{side.peak_bytes / 1e6:,.0f}",
            f"{flops / rate['flops']:.0%}",
            f"{ours.per_second(ours.tokens, warmup=warmup) / speed:.2f}",
            f"{ours.peak_bytes / side.peak_bytes:.2f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def agreement(sides: list[Side]) -> tuple[float, float, bool]:
    """The largest relative differences of a step's mean and summed loss, ours to the packed peer's; equal tokens."""
    by_name = {side.name: side for side in sides}
    ours, peer = by_name[OURS], by_name[PACKED]
    same = all(a == b for a, b in zip(ours.tokens, peer.tokens, strict=False))
    return largest(ours.losses, peer.losses), largest(ours.summed_losses, peer.summed_losses), same


def largest(ours: list[float], theirs: list[float]) -> float:
    return max(abs(one - other) / other for one, other in zip(ours, theirs, strict=False))


def draw(sides: list[Side], path: Path, *, title: str) -> None:
    """Loss against the tokens trained on, and against time."""
    import matplotlib  # the extra "plot"

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (by_tokens, by_time) = pyplot.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    styles = {OURS: ("#1f77b4", "-", 2.5), PACKED: ("#d62728", "--", 1.5), PLAIN: ("#7f7f7f", ":", 1.5)}
    styles[DEFAULT] = ("#2ca02c", "-.", 1.5)
    for side in sides:
        colour, line, width = styles[side.name]
        look = {"color": colour, "linestyle": line, "linewidth": width, "label": side.name}
        count = len(side.losses)
        by_tokens.plot(side.tokens[:count], side.losses, **look)
        by_time.plot([end - side.ends[0] for end in side.ends[:count]], side.losses, **look)
    by_tokens.set(xlabel="tokens", ylabel="loss")
    by_time.set(xlabel="seconds since the first step's end")
    by_tokens.legend(frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def report(rate: dict[str, Any], sides: list[Side], config: str, options: argparse.Namespace) -> int:
    versions = {name: number for side in sides for name, number in side.versions.items()}
    where = f"{rate['device']}, {rate['threads']} threads; " + ", ".join(f"{k} {v}" for k, v in versions.items())
    name = "a tiny Llama" if options.tiny else Path(options.model).name
    what = f"{name}, {options.precision}, packed to {options.max_length}, {options.batch_size} packed rows a step"
    print(what)
    print(f"{where}; matrix rate {rate['flops'] / 1e9:,.0f} GFLOP/s in {options.precision}\n")
    print(table(sides, rate, warmup=options.warmup))
    print("\nours:\n\n" + config)
    for side in sides[1:]:
        print(f"{side.name}: {side.settings}")
    content = {"where": where, "rate": rate, "sides": [vars(side) for side in sides]}
    if options.json:
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if options.figure:
        draw(sides, options.figure, title=what)
    if len(sides) == 1:
        return 0
    mean, total, same = agreement(sides)
    print(f"\nthe same tokens in every step: {same}; a step's loss differs by at most {mean:.2%}, summed {total:.2%}")
    return 0 if same and total <= options.tolerance else 1


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a chat model")
    parser.add_argument("--rows", type=Path, help="JSON lines of question and answer")
    parser.add_argument("--tiny", action="store_true", help="a Llama of two layers on sums, fp32")
    parser.add_argument("--trl", metavar="PYTHON", help="an interpreter that has trl")
    parser.add_argument("--steps", type=int, help="of ours and the packed peer (default 8; 60 with --tiny)")
    parser.add_argument(
        "--default-steps", type=int, help="of the peer not packed and with its defaults; 0: leave both out"
    )
    parser.add_argument("--warmup", type=int, default=1, help="steps that do not count")
    parser.add_argument("--max-length", type=int, help="default 512; 128 with --tiny")
    parser.add_argument("--batch-size", type=int, default=4, help="packed rows a step")
    parser.add_argument("--num-rows", type=int, help="default: as many as the steps take")
    parser.add_argument("--precision", choices=["bf16", "fp32"], help="default bf16; fp32 with --tiny")
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument(
        "--gradient-checkpointing", action=argparse.BooleanOptionalAction, default=False, help="of ours"
    )
    parser.add_argument("--torch-compile", action=argparse.BooleanOptionalAction, default=False, help="of ours")
    parser.add_argument("--tolerance", type=float, default=0.01, help="relative, of a step's summed loss")
    parser.add_argument("--json", type=Path, help="write curves and figures here")
    parser.add_argument("--figure", type=Path, help="draw the curves here (matplotlib, the extra 'plot')")
    parser.add_argument("--serve", nargs=2, metavar=("SIDE", "TASK"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not options.serve and not options.tiny and not (options.model and options.rows):
        parser.error("give --model and --rows, or --tiny")
    tiny = options.tiny
    options.steps = options.steps or (60 if tiny else 8)  # TRL packs 1,000 rows at a time: above, the bins differ
    options.default_steps = options.steps if options.default_steps is None else options.default_steps
    options.max_length = options.max_length or (128 if tiny else 512)
    options.precision = options.precision or ("fp32" if tiny else "bf16")
    mean_tokens = 32 if tiny else 220
    options.num_rows = options.num_rows or options.steps * options.batch_size * options.max_length // mean_tokens
    return options


def main(arguments: list[str] | None = None) -> int:
    options = options_of(arguments)
    if options.serve:
        side, path = options.serve
        task = json.loads(Path(path).read_text(encoding="utf-8"))
        Path(task["result"]).write_text(json.dumps(SERVE[side](task)), encoding="utf-8")
        return 0
    with tempfile.TemporaryDirectory(prefix="throughput-") as folder:
        rate, sides, config = measure(options, Path(folder))
        return report(rate, sides, config.replace(folder, "..."), options)


if __name__ == "__main__":
    raise SystemExit(main())
