"""Numbers of steps on a command line."""

from __future__ import annotations

from sftctl.cli.options import Invocation
from sftctl.errors import ConfigError, Problem


def steps_of(invocation: Invocation, name: str, default: int) -> int:
    """The value of a switch that counts steps. Raises ConfigError for what is no such number."""
    text = invocation.text(name, "")
    if text and not (text.isdecimal() and int(text) > 0):
        raise ConfigError(Problem("", f"--{name} {text}: not a number of steps", help=f"write --{name} 8"))
    return int(text or default)
