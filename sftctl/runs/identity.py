"""Whether two configurations are one run: the leaves that differ, and which of them may.

A resumed run has to compute what the run that was never stopped would have computed. A leaf may change when it
decides only where files go, how often something is written or drawn, or how the same numbers are arrived at;
it may not when it decides what is trained. Unknown leaves may not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from sftctl.errors import Problem
from sftctl.runs.secrets import is_secret_name

MAY_CHANGE = (
    "run.output_dir",
    "run.run_name",
    "run.tags",
    "run.overwrite",
    "data.cache_dir",
    "data.dataset_num_proc",
    "data.eval_datasets",
    "sft.eval_packing",
    "eval.*",
    "checkpoint.*",
    "log.*",
    "distributed.rdzv_endpoint",
    "distributed.node_rank",
    "distributed.nnodes",
    "distributed.nproc_per_node",
    "distributed.strategy",
    "distributed.hsdp_replicas",
    "distributed.fsdp_cpu_offload",
    "distributed.reshard_after_forward",
    "train.per_device_train_batch_size",
    "train.gradient_accumulation_steps",
    "env.*",
)
"""Patterns of leaves that may differ between a checkpoint and the run that goes on from it.

How the weights are spread and a batch is cut may change (n ranks to m); that the global batch stays the same is
the plan's to prove, whose hash is in the checkpoint.
"""


@dataclass(frozen=True, slots=True)
class Difference:
    """A leaf with its value before and now."""

    path: str
    before: Any
    now: Any


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables to leaves: {"optim": {"betas": (0.9, 0.99)}} -> {"optim.betas": [0.9, 0.99]}."""
    leaves: dict[str, Any] = {}
    for key, value in settings.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            leaves.update(flat(value, f"{path}."))
        else:
            leaves[path] = _comparable(value)
    return leaves


def _comparable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _comparable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_comparable(item) for item in value]
    return value


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], *, may_change: Iterable[str] = MAY_CHANGE
) -> tuple[Difference, ...]:
    """The leaves whose values differ and may not, in the order of `now`. Both are nested groups of plain values.

    Secrets decide nothing, and a saved configuration does not hold them: they may be there or not.
    """
    old, new = flat(before), flat(now)
    patterns = tuple(may_change)
    return tuple(
        Difference(path, old.get(path), new.get(path))
        for path in (*new, *(path for path in old if path not in new))
        if old.get(path) != new.get(path)
        and not any(fnmatchcase(path, pattern) for pattern in patterns)
        and not is_secret_name(path)
    )


def problems(found: Iterable[Difference], *, where: str) -> tuple[Problem, ...]:
    """One problem a leaf: "optim.learning_rate: is 0.001 here and 0.0001 in runs/a"."""
    return tuple(
        Problem(
            item.path,
            f"is {item.now!r} now and was {item.before!r} in {where}",
            help="set it back, or start another run: another run.run_name, or run.overwrite",
        )
        for item in found
    )


def other_identity(before: Mapping[str, str], now: Mapping[str, str], *, where: str) -> Iterator[Problem]:
    """A problem for each of data, plan and the like whose hash in `where` is not the one now."""
    for name, value in now.items():
        if before.get(name) != value:
            yield Problem(
                "checkpoint.resume",
                f"the {name} is not the one of {where}: {value[:16]} now, {str(before.get(name))[:16]} there",
                help="restore the files that the run was started with, or start another run",
            )
