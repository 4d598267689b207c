"""From a command line to a resolved configuration, with the problems of both in one report."""

from __future__ import annotations

import os

from sftctl.cli.options import Invocation
from sftctl.config.resolve import Resolved, resolve
from sftctl.errors import ConfigError


def resolve_invocation(invocation: Invocation) -> Resolved:
    """Files, this process's environment and the options, resolved. Raises ConfigError with every problem."""
    problems = invocation.problems
    try:
        resolved = resolve(invocation.words, env=os.environ, options=invocation.assignments)
    except ConfigError as error:
        raise ConfigError(*error.problems, *problems) from None
    if problems:
        raise ConfigError(*problems)
    return resolved


def apply_environment(resolved: Resolved) -> None:
    """Set the variables of `[env]` in this process, never over what the caller has. Before torch is imported."""
    for name, value in resolved.bundle.env.items():
        os.environ.setdefault(name, value)
