"""From a command line to a resolved configuration, with the problems of both in one report."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from sftctl.cli.options import Invocation
from sftctl.cli.terminal import colour_report, has_colour, write
from sftctl.config import registry
from sftctl.config.resolve import Resolved, resolve
from sftctl.errors import ConfigError, SftctlError


def resolve_invocation(invocation: Invocation) -> Resolved:
    """Files, this process's environment and the options, resolved; what is worth a note goes to standard error.

    Raises ConfigError with every problem of all of them.
    """
    resolved = resolve_quietly(invocation)
    if resolved.notes:
        from sftctl.config.report import render_notes  # only where there is something to say

        text = colour_report(render_notes(resolved.notes), colour=has_colour(sys.stderr))
        write(f"{text}\n", stream=sys.stderr)
    return resolved


def resolve_quietly(invocation: Invocation) -> Resolved:
    """The same without its notes."""
    try:
        resolved = resolve(invocation.words, env=os.environ, options=invocation.assignments)
    except ConfigError as error:
        raise ConfigError(*error.problems, *invocation.problems) from None
    if invocation.problems:
        raise ConfigError(*invocation.problems)
    return resolved


def registers_groups(files: Sequence[str]) -> bool:
    """Whether plug-ins that `files` name, or installed ones, brought groups that were not known before.

    Asked only when a command line holds an option that nobody knows: it may be a plug-in's.
    """
    before = registry.version()
    with suppress(ConfigError):  # its report comes when everything is resolved
        resolve(files)
    return registry.version() != before


@contextmanager
def origins_told(resolved: Resolved) -> Iterator[None]:
    """While later rooms work: what they find wrong with a setting says where that was set."""
    try:
        yield
    except SftctlError as error:
        from sftctl.config.located import located  # only on the way to an error

        error.problems = located(error.problems, resolved)
        raise


def apply_environment(resolved: Resolved) -> None:
    """Set the variables of `[env]` in this process, never over what the caller has. Before torch is imported."""
    for name, value in resolved.bundle.env.items():
        os.environ.setdefault(name, value)
