"""`sftctl config init [PATH]`: a commented file with every setting."""

from __future__ import annotations

import os

from sftctl.cli.command import Command
from sftctl.cli.options import Invocation
from sftctl.cli.switches import Example, Switch, Usage, Words
from sftctl.cli.terminal import write
from sftctl.config.recipes import names
from sftctl.errors import ConfigError, Problem

USAGE = Usage(
    summary="Write a commented file with every setting, its default and what it takes.",
    about=(
        "Everything in it is a default, as a comment: take the mark away from what you want to change. "
        "Without PATH the file goes to standard output."
    ),
    words=Words("PATH", "The file to write; one that ends in .yaml is YAML.", most=1),
    switches=(
        Switch("recipe", "Start from a recipe that comes with sftctl.", value="NAME", candidates=names),
        Switch("minimal", "Only the few settings that one writes first."),
        Switch("format", "How it is written. [toml]", choices=("toml", "yaml")),
        Switch("force", "Replace a file that is there."),
    ),
    examples=(
        Example("sftctl config init run.toml", "A file to edit:"),
        Example("sftctl config init run.toml --minimal", "A short one:"),
        Example("sftctl config init mine.toml --recipe quickstart", "One that already trains something:"),
    ),
)


def run(invocation: Invocation) -> None:
    from sftctl.config import scaffold  # which the help does not need
    from sftctl.config.schema import Bundle

    path = invocation.words[0] if invocation.words else None
    is_yaml = path is not None and path.endswith((".yaml", ".yml"))
    written: scaffold.Format = "yaml" if invocation.text("format", "yaml" if is_yaml else "toml") == "yaml" else "toml"
    folder = os.path.dirname(os.path.abspath(path)) if path is not None else None
    recipe = invocation.text("recipe")
    if recipe and invocation.on("minimal"):
        raise ConfigError(Problem("--minimal", "says the opposite of --recipe", help="give one of them"))
    if invocation.on("minimal"):
        text = scaffold.minimal(written)
    elif recipe:
        text = scaffold.from_recipe(recipe, written, folder=folder)
    else:
        text = scaffold.scaffold(Bundle(), written, folder=folder)
    if path is None:
        write(text.rstrip("\n"))
        return
    scaffold.write(path, text, force=invocation.on("force"))
    write(f"wrote {path}\nnext: sftctl config check {path}, then sftctl train {path}")


command = Command("init", USAGE, run)
