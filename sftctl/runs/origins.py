"""origins.json: for each leaf of the configuration its value, where it came from, and what that shadowed.

Given as plain data, since this room does not know the configuration's. Values that look like secrets are
replaced before they reach the disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sftctl.runs.directory import RunDirectory
from sftctl.runs.files import write_json
from sftctl.runs.secrets import REDACTED, is_secret_name, redact_tree


def write_origins(run: RunDirectory, leaves: Mapping[str, Mapping[str, Any]]) -> None:
    """`leaves`: path of the leaf -> {"value", "origin", "shadowed"}, in the order of the schema."""
    write_json(run.origins, {path: _cleared(path, entry) for path, entry in leaves.items()})


def _cleared(path: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    cleared: dict[str, Any] = redact_tree(entry)
    if is_secret_name(path) and isinstance(cleared.get("value"), str):
        cleared["value"] = REDACTED
        cleared["shadowed"] = []
    return cleared
