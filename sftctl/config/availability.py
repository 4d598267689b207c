"""What the schema has and nothing implements yet: the one list. A later change empties it.

A key is a leaf's path, or a path and a value of it (for a list: one of its items). Whoever sets such a leaf to
something other than its default is told "not available yet", instead of being ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sftctl.config.leaves import leaves
from sftctl.config.values import show_value
from sftctl.errors import Origin, Problem

NOT_YET: dict[str | tuple[str, Any], str] = {}
"""Why or what instead, by leaf, or by leaf and value."""


def refuse(value_of: Callable[[str], Any], origin_of: Callable[[str], Origin]) -> Iterator[Problem]:
    """A problem for each leaf that is set to what nothing implements."""
    for key, instead in NOT_YET.items():
        path, wanted = (key, None) if isinstance(key, str) else key
        leaf, value = leaves()[path], value_of(path)
        if value == leaf.default or (wanted is not None and not _holds(value, wanted)):
            continue
        shown = show_value(value if wanted is None else wanted)
        yield Problem(
            path, f"{shown} is not available yet", origin_of(path), f"{instead}; leave it at {show_value(leaf.default)}"
        )


def _holds(value: Any, wanted: Any) -> bool:
    return wanted in value if isinstance(value, tuple) else bool(value == wanted)
