"""The training engine: torch, transformers, datasets. `train(bundle)` runs what a bundle says.

`train` is imported when it is asked for, since rooms below this one (`engine.data`) are used without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sftctl.engine.driver import train

__all__ = ["train"]


def __getattr__(name: str) -> Any:
    if name == "train":
        from sftctl.engine.driver import train  # torch: seconds

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
