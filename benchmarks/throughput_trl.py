"""TRL's side of `throughput.py`: one training run by its SFTTrainer, told in a JSON file what to do.

    PYTHON throughput_trl.py task.json        in an environment that has trl; the result goes where the task says

Its best settings on this machine, beside what the task fixes: on CUDA flash attention where it is installed, and
Liger's kernels where they are; on a CPU attention by torch's SDPA. Its fused head is its only head for "nll". With
`defaults` in the task nothing is passed but what the task fixes and what measuring takes: the rest is SFTConfig's
own (8 rows a step in random order, padded, gradient checkpointing).
"""

from __future__ import annotations

import importlib.util
import json
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer


class Clock(TrainerCallback):
    """What was logged of each step, and when it ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.processor: list[float] = []
        self.losses: list[float] = []
        self.tokens: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        self.processor.append(time.process_time())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "num_tokens" in logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))
            self.tokens.append(int(logs["num_tokens"]))


class Counting(SFTTrainer):
    """Counts the targets of each step, which SFTTrainer does not log."""

    trained: list[int]

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self.trained.append(int((inputs["labels"][..., 1:] != -100).sum()))
        return super().training_step(model, inputs, *args, **kwargs)


def has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def fixed(task: dict[str, Any]) -> dict[str, Any]:
    """What the task fixes, and what measuring takes."""
    return {
        "output_dir": task["folder"],
        "max_steps": task["steps"],
        "max_length": task["max_length"],
        "learning_rate": task["learning_rate"],
        "lr_scheduler_type": "constant",
        "seed": task["seed"],
        "bf16": task["precision"] == "bf16",
        "use_cpu": not torch.cuda.is_available(),
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "model_init_kwargs": {"dtype": "float32"},
    }


def best(task: dict[str, Any]) -> dict[str, Any]:
    """What makes it faster here, and its batches those of the other side."""
    cuda = torch.cuda.is_available()
    load = {"dtype": "float32"} | ({"attn_implementation": "flash_attention_2"} if cuda and has("flash_attn") else {})
    return {
        "packing": task["packing"],
        "per_device_train_batch_size": task["batch_size"],
        "gradient_checkpointing": False,
        "use_liger_kernel": cuda and has("liger_kernel"),
        "dataloader_pin_memory": cuda,
        "train_sampling_strategy": "sequential",
        "model_init_kwargs": load,
    }


def run(task: dict[str, Any]) -> dict[str, Any]:
    datasets.disable_progress_bars()
    chosen = fixed(task) | ({} if task["defaults"] else best(task))
    clock = Clock()
    trainer = Counting(
        model=task["model"],
        args=SFTConfig(**chosen),
        train_dataset=datasets.load_dataset("json", data_files=task["rows"], split="train", cache_dir=task["folder"]),
        callbacks=[clock],
    )
    trainer.trained = []
    trainer.train()
    names = ("packing", "gradient_checkpointing", "bf16", "use_liger_kernel", "per_device_train_batch_size")
    attention = trainer.model.config._attn_implementation
    cuda = torch.cuda.is_available()
    return {
        "ends": clock.ends,
        "processor": clock.processor,
        "losses": clock.losses,
        "tokens": clock.tokens,
        "trained": [sum(trainer.trained[: end + 1]) for end in range(len(trainer.trained))],
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else peak_bytes(),
        "settings": {name: getattr(trainer.args, name) for name in names} | {"attn_implementation": attention},
        "versions": {name: version(name) for name in ("trl", "transformers", "torch")},
    }


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    told = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(told["result"]).write_text(json.dumps(run(told)), encoding="utf-8")
