"""`sftctl config diff A B`: what differs, leaf by leaf, with where each side has it from."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import groupby

from sftctl.cli.command import Command
from sftctl.cli.config.rows import Look
from sftctl.cli.options import Invocation
from sftctl.cli.switches import Example, Switch, Usage, Words
from sftctl.cli.terminal import has_colour, styled, write

EQUAL, DIFFERENT = 0, 1

USAGE = Usage(
    summary="Tell what differs between two configurations, and where each side has it from.",
    about=(
        "A and B are files, run directories, recipe:NAME, or the word defaults. Values are compared, not texts: "
        "1e-4 and 0.0001 are the same. Exit code 0 when equal, 1 when different, 2 on an error."
    ),
    words=Words("A B", "Two of: a file, a run directory, recipe:NAME, defaults.", least=2, most=2, recipes=True),
    switches=(Switch("format", "How it is written. [table]", choices=("table", "json", "patch")),),
    examples=(
        Example("sftctl config diff runs/first runs/second", "Why two runs differ:"),
        Example("sftctl config diff defaults run.toml", "What a file sets:"),
    ),
)


def run(invocation: Invocation) -> int:
    from sftctl.config.diff import compare, table, to_json, to_patch  # which the help does not need

    a, b = invocation.words
    found = compare(a, b)
    written = invocation.text("format", "table")
    if written == "json":
        write(to_json(found).rstrip("\n"))
    elif written == "patch":
        sys.stdout.write(to_patch(found, a, b))
    elif found:
        write("\n".join(_lines(a, b, table(found))))
    else:
        write("nothing differs")
    return DIFFERENT if found else EQUAL


def _lines(a: str, b: str, rows: Sequence[tuple[str, str, str, str, str]]) -> Iterator[str]:
    look = Look(max(len(row[0].partition(".")[2]) for row in rows), has_colour(sys.stdout))
    yield styled(f"- {a}", "red", colour=look.colour)
    yield styled(f"+ {b}", "green", colour=look.colour)
    for group, members in groupby(rows, key=lambda row: row[0].partition(".")[0]):
        yield ""
        yield look.heading(group)
        for path, before, after, before_origin, after_origin in members:
            yield from look.lines(path.partition(".")[2], before, before_origin, sign="- ", value_style="red")
            yield from look.lines("", after, after_origin, sign="+ ", value_style="green")


command = Command("diff", USAGE, run)
