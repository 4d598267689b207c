"""The words FILE… of every command that resolves a configuration."""

from __future__ import annotations

from sftctl.cli.switches import Words

FILES = Words(
    "FILE",
    "TOML, YAML or JSON files, later ones winning over earlier ones. recipe:NAME is a recipe that comes with "
    "sftctl; the config.toml of a run repeats it.",
    recipes=True,
)
