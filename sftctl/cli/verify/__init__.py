"""`sftctl verify …`: proofs that a reader can run on a configuration of their own."""

from __future__ import annotations

from sftctl.cli.command import Entry, Group

command = Group(
    "verify",
    "Prove, on your own configuration, what is promised of every run.",
    {
        "equivalence": Entry(
            "sftctl.cli.verify.equivalence", "A batch that is cut or laid out otherwise trains the same."
        ),
        "resume": Entry("sftctl.cli.verify.resume", "A run that is stopped and resumed is the one that never stopped."),
    },
)
