"""`sftctl config show`: the resolved configuration, and where each value comes from."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from sftctl.cli.command import Command
from sftctl.cli.config.rows import Look
from sftctl.cli.files import FILES
from sftctl.cli.options import Invocation
from sftctl.cli.resolving import resolve_invocation
from sftctl.cli.switches import Example, Switch, Usage
from sftctl.cli.terminal import has_colour, write

if TYPE_CHECKING:
    from sftctl.config.show import Row

FORMATS = ("table", "toml", "yaml", "json")

USAGE = Usage(
    summary="Show the configuration that the files, the environment and the options make together.",
    about="As TOML, YAML or JSON it loads back equal: what is shown is a file. Secrets show as ****.",
    words=FILES,
    switches=(
        Switch("origin", "Where each value comes from, and what it shadows."),
        Switch("changed", "Only what differs from the defaults."),
        Switch("format", "How it is written. [table]", choices=FORMATS),
    ),
    examples=(
        Example("sftctl config show run.toml --changed", "What a file sets:"),
        Example("sftctl config show base.toml run.toml --learning-rate 1e-4 --origin", "Which of them wins:"),
        Example("sftctl config show run.toml --format yaml > run.yaml", "The same file as YAML:"),
    ),
    takes_leaves=True,
)


def run(invocation: Invocation) -> None:
    from sftctl.config.show import FORMATS as FILE_FORMATS  # which the errors of resolving do not need
    from sftctl.config.show import dump, rows

    resolved = resolve_invocation(invocation)
    changed, format = invocation.on("changed"), invocation.text("format", "table")
    for written in FILE_FORMATS:
        if format == written:
            write(dump(resolved, written, changed=changed).rstrip("\n"))
    if format == "table":
        shown = rows(resolved, changed=changed)
        write("\n".join(_table(shown, origin=invocation.on("origin"))) or "nothing differs from the defaults")


def _table(shown: Sequence[Row], *, origin: bool) -> Iterator[str]:
    """Groups with their keys and values; with `origin` the source beside each, and below it what it shadows."""
    look = Look(max((len(_name(row)) for row in shown), default=0), has_colour(sys.stdout), sources=origin)
    for index, (group, rows) in enumerate(groupby(shown, key=_group)):
        if index:
            yield ""
        yield look.heading(group)
        for row in rows:
            name_style, value_style = ("green", "") if row.changed else ("", "dim")
            yield from look.lines(_name(row), row.value, row.origin, name_style=name_style, value_style=value_style)
            for value, source in row.shadowed if origin else ():
                yield from look.lines("", f"over {value}", source, value_style="dim")


def _group(row: Row) -> str:
    return row.path.partition(".")[0]


def _name(row: Row) -> str:
    return row.path.partition(".")[2]


command = Command("show", USAGE, run)
