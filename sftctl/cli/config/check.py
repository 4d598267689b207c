"""`sftctl config check FILE…`: every problem, and nothing else."""

from __future__ import annotations

from sftctl.cli.command import Command
from sftctl.cli.files import FILES
from sftctl.cli.options import Invocation
from sftctl.cli.resolving import resolve_invocation
from sftctl.cli.switches import Example, Usage

USAGE = Usage(
    summary="Say everything that is wrong with the files together, and nothing when all is well.",
    about=(
        "Files are laid over one another as `sftctl train` does it, with the environment and the options. "
        "Exit code 0 when there is no problem, 2 when there is. What has no effect is a note, not a problem. "
        "Whether models and data are there is checked by `sftctl train --dry-run`."
    ),
    words=FILES._replace(least=1),
    examples=(Example("sftctl config check base.toml run.toml", "In a script or a hook:"),),
    takes_leaves=True,
)


def run(invocation: Invocation) -> None:
    resolve_invocation(invocation)


command = Command("check", USAGE, run)
