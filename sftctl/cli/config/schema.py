"""`sftctl config schema`: the JSON Schema of a file, for editors."""

from __future__ import annotations

from sftctl.cli.command import Command
from sftctl.cli.options import Invocation
from sftctl.cli.switches import Example, Usage
from sftctl.cli.terminal import write

USAGE = Usage(
    summary="Print the JSON Schema (2020-12) of a configuration file.",
    about=(
        "An editor that has it completes keys, shows their help and marks mistakes while one types. A TOML file "
        "names it in its first line, #:schema ./sftctl.schema.json; a YAML file in "
        "# yaml-language-server: $schema=./sftctl.schema.json."
    ),
    examples=(Example("sftctl config schema > sftctl.schema.json", "Save it:"),),
)


def run(invocation: Invocation) -> None:
    from sftctl.config.jsonschema import dump  # which the help does not need

    write(dump().rstrip("\n"))


command = Command("schema", USAGE, run)
