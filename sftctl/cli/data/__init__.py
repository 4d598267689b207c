"""`sftctl data …`: what will be trained, before anything is. No weights are loaded."""

from __future__ import annotations

from sftctl.cli.command import Entry, Group
from sftctl.cli.switches import Example

command = Group(
    "data",
    "Look at the rows as the model will see them, and count them. Both commands read the same files, environment "
    "and options as train, and need no weights.",
    {
        "preview": Entry("sftctl.cli.data.preview", "Rows token by token: what trains, what does not, and why."),
        "stats": Entry("sftctl.cli.data.stats", "What trains by source and role, lengths, padding, packing, steps."),
    },
    examples=(
        Example("sftctl data preview run.toml", "See which words are trained:"),
        Example("sftctl data stats run.toml", "Choose max_length and packing:"),
    ),
)
