"""sftctl: one typed, layered configuration becomes a fine-tuning run that can be proven.

    bundle = sftctl.load("run.toml", overrides={"optim.learning_rate": 1e-4})
    result = sftctl.train(bundle)

Names are imported when they are first used, so that `import sftctl` costs nothing and only `train` costs torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sftctl.config.python import evolve, load, sweep
    from sftctl.config.registry import register_group
    from sftctl.config.schema import Bundle, Dataset, leaf
    from sftctl.engine import train
    from sftctl.errors import ConfigError, SftctlError

_HOMES = {
    "Bundle": "sftctl.config.schema",
    "ConfigError": "sftctl.errors",
    "Dataset": "sftctl.config.schema",
    "SftctlError": "sftctl.errors",
    "evolve": "sftctl.config.python",
    "leaf": "sftctl.config.schema",
    "load": "sftctl.config.python",
    "register_group": "sftctl.config.registry",
    "sweep": "sftctl.config.python",
    "train": "sftctl.engine",
}

__all__ = [
    "Bundle",
    "ConfigError",
    "Dataset",
    "SftctlError",
    "evolve",
    "leaf",
    "load",
    "register_group",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sftctl' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
