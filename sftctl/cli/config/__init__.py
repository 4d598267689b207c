"""`sftctl config …`: the commands about configurations. What they do is in sftctl.config; here it is drawn."""

from __future__ import annotations

from sftctl.cli.command import Entry, Group
from sftctl.cli.switches import Example

command = Group(
    "config",
    (
        "Show, compare, write, check and explain configurations. A configuration is the defaults, then files, "
        "then SFTCTL_GROUP__KEY variables, then options: later ones win, and each value remembers its source."
    ),
    {
        "show": Entry("sftctl.cli.config.show", "The resolved configuration, and where each value comes from."),
        "diff": Entry("sftctl.cli.config.diff", "What differs between two files, runs or the defaults."),
        "init": Entry("sftctl.cli.config.init", "Write a commented file with every setting."),
        "check": Entry("sftctl.cli.config.check", "Every problem of the files, and nothing else."),
        "explain": Entry("sftctl.cli.config.explain", "What a setting means, takes, and how it is spelt."),
        "schema": Entry("sftctl.cli.config.schema", "JSON Schema of a file, for editors."),
        "import": Entry("sftctl.cli.config.import_trl", "A TRL configuration as a file of ours."),
    },
    examples=(
        Example("sftctl config init run.toml", "Start a file:"),
        Example("sftctl config show run.toml --changed", "See what it sets beside the defaults:"),
        Example("sftctl config diff runs/a runs/b", "Ask why two runs differ:"),
        Example("sftctl config explain learning_rate", "Ask about a setting:"),
    ),
)
