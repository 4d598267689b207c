"""environment.json: what a run ran on. Versions, device, commit, command line; never a secret.

Versions come from the installed packages' metadata, so nothing is imported to learn them.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from sftctl.runs.directory import RunDirectory
from sftctl.runs.files import write_json
from sftctl.runs.secrets import redact_command
from sftctl.runs.state import utc_now

PACKAGES = (
    "sftctl", "torch", "transformers", "datasets", "tokenizers", "safetensors", "numpy", "peft", "bitsandbytes",
    "flash-attn", "triton", "accelerate",
)  # fmt: skip

VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NCCL_DEBUG",
    "PYTORCH_ALLOC_CONF", "CUBLAS_WORKSPACE_CONFIG", "TOKENIZERS_PARALLELISM", "HF_HUB_OFFLINE",
)  # fmt: skip
"""The environment variables that are recorded, by name: a list of what may be seen, not of what may not."""


def describe(
    *,
    device: str,
    command: Sequence[str],
    folder: Path | None = None,
    details: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The environment as plain data. `device`, and `details` such as CUDA's version, are the engine's to say."""
    return {
        "time": utc_now(),
        "command": redact_command(command),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "device": device,
        "packages": versions(PACKAGES),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "git": git_commit(folder or Path.cwd()),
        **(details or {}),
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit(folder: Path) -> dict[str, Any] | None:
    """The commit checked out in `folder`, and whether files differ from it; None outside a repository."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": bool(changed)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def write_environment(run: RunDirectory, environment: Mapping[str, Any]) -> None:
    write_json(run.environment, environment)
