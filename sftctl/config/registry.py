"""Domain groups of other people's: `register_group("reward", RewardGroup)`, plug-in modules, entry points.

A registered group has options, environment names, help, show, diff, init and schema like a built-in one. The
registry belongs to the process; `version` counts its changes, so that tables made from it know when they are old.
"""

from __future__ import annotations

from collections.abc import Mapping

_groups: dict[str, type] = {}
_version = 0


def registered() -> Mapping[str, type]:
    """The registered groups by their names, in the order of registration."""
    return dict(_groups)


def version() -> int:
    """Grows by one with every registration."""
    return _version
