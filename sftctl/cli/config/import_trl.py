"""`sftctl config import FILE`: a TRL configuration as a file of ours."""

from __future__ import annotations

import sys

from sftctl.cli.command import Command
from sftctl.cli.options import Invocation
from sftctl.cli.switches import Example, Switch, Usage, Words
from sftctl.cli.terminal import has_colour, styled, write

USAGE = Usage(
    summary="Turn a TRL configuration into a TOML file of ours that loads.",
    about=(
        "FILE is a YAML file as `trl sft --config` takes it, or a shell script with its options. What could not be "
        "carried over is said line by line on standard error, and stands as comments in the result."
    ),
    words=Words("FILE", "A YAML file of TRL's, or a shell script that calls it.", least=1, most=1),
    switches=(
        Switch("output", "Write there and not to standard output.", value="PATH", short="o"),
        Switch("force", "Replace a file that is there."),
    ),
    examples=(
        Example("sftctl config import sft.yaml", "See what becomes of a file:"),
        Example("sftctl config import sft.yaml -o run.toml", "Write it:"),
    ),
)


def run(invocation: Invocation) -> None:
    from sftctl.config.trl_import import import_trl  # with all of TRL's fields

    target = invocation.text("output") or None
    imported = import_trl(invocation.words[0], target=target)
    if target is None:
        write(imported.text.rstrip("\n"))
    else:
        from sftctl.config import scaffold  # which writes files

        scaffold.write(target, imported.text, force=invocation.on("force"))
        write(f"wrote {target}")
    sys.stdout.flush()
    for problem in imported.left:
        place = styled(
            f"{problem.origin}: " if problem.origin is not None else "", "blue", colour=has_colour(sys.stderr)
        )
        help = f"; {problem.help}" if problem.help else ""
        write(f"{place}{problem.path}: {problem.message}{help}", stream=sys.stderr)


command = Command("import", USAGE, run)
