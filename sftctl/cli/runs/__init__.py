"""`sftctl runs …`: what is in the run directories. Read from them alone, without torch."""

from __future__ import annotations

from typing import ClassVar

from sftctl.cli.command import Commands, Entry


class RunsCommands(Commands):
    """The commands of `sftctl runs`."""

    entries: ClassVar = {
        "list": Entry("sftctl.cli.runs.list_runs", "The runs in a folder, the newest first."),
        "show": Entry("sftctl.cli.runs.show_run", "One run: how far it is, its losses, its disk use, how to resume."),
    }


command = RunsCommands(name="runs", help="What is in the run directories.")
