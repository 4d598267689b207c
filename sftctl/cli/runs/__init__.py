"""`sftctl runs …`: what is in the run directories. Read from them alone, without torch."""

from __future__ import annotations

from sftctl.cli.command import Entry, Group

command = Group(
    "runs",
    "What is in the run directories.",
    {
        "list": Entry("sftctl.cli.runs.list_runs", "The runs in a folder, the newest first."),
        "show": Entry("sftctl.cli.runs.show_run", "One run: how far it is, its losses, its disk use, how to resume."),
    },
)
