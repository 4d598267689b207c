"""`sftctl`: the commands, each in a module of its own that is imported when it is called.

Exit codes: 0 done, 1 training stopped or two configurations differ, 2 something to mend in what was given,
3 stopped on purpose with a checkpoint; 130 interrupted, 141 the reader of a pipe went away. What is the user's
to mend is a report on standard error and never a traceback; a traceback is a bug of ours and says so.

`app` is the Typer application; a call from the shell does without it (see `command.py`).
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Sequence
from typing import Any

from sftctl.cli.command import Entry, Group, GroupOption
from sftctl.cli.switches import Example
from sftctl.cli.terminal import colour_report, has_colour, write
from sftctl.errors import Interrupted, SftctlError

PROGRAM = "sftctl"
COMPLETE = "_SFTCTL_COMPLETE"
INTERRUPTED, BROKEN_PIPE, BUG = 130, 141, 70


def _version() -> None:
    from importlib.metadata import version  # it reads the disk

    write(f"{PROGRAM} {version(PROGRAM)}")


def _install_completion() -> None:
    from sftctl.cli.typer_app import install_completion  # Typer knows the shells

    install_completion(PROGRAM)


def _show_completion() -> None:
    from sftctl.cli.typer_app import show_completion  # Typer knows the shells

    show_completion(PROGRAM)


ROOT = Group(
    PROGRAM,
    "Supervised fine-tuning from one typed configuration, with proof of what was trained.",
    {
        "train": Entry("sftctl.cli.train", "Fine-tune a model."),
        "sweep": Entry("sftctl.cli.sweep", "Train once for each combination of values, and compare."),
        "data": Entry("sftctl.cli.data", "Show what will be trained, token by token, and count it."),
        "runs": Entry("sftctl.cli.runs", "List runs, and tell how far one is and how it goes on."),
        "plan": Entry("sftctl.cli.plan", "Plan a run's memory before anything loads."),
        "export": Entry(
            "sftctl.cli.export", "Write a run's model as a Hugging Face folder, merged or not, or push it."
        ),
        "verify": Entry("sftctl.cli.verify", "Prove, on your own configuration, what is promised of every run."),
        "config": Entry("sftctl.cli.config", "Show, compare, write, check and explain configurations."),
    },
    examples=(
        Example("sftctl train recipe:quickstart", "See it work, in a minute, without a GPU or a network:"),
        Example("sftctl config init run.toml", "Write a commented file with every setting, and edit it:"),
        Example("sftctl train run.toml --dry-run", "Check all that can be checked before the weights load:"),
        Example("sftctl train run.toml --learning-rate 1e-4", "Train, with a setting changed on the way:"),
        Example("sftctl config show run.toml --origin", "See where each value comes from:"),
    ),
    options={
        "--version": GroupOption("Show the version.", _version),
        "--install-completion": GroupOption("Complete commands and options in this shell.", _install_completion),
        "--show-completion": GroupOption("Show that completion script instead.", _show_completion),
    },
)
"""The commands. One is listed when it works."""


def __getattr__(name: str) -> Any:
    if name == "app":
        from sftctl.cli.typer_app import app  # for who embeds it

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; the entry point of the `sftctl` script.

    Nothing that is made on the way to a command becomes garbage, so the collector rests until there is
    training to do (`train.py`): an eighth of the start-up.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    collects = gc.isenabled()
    gc.disable()
    try:
        code = _run(words)
        sys.stdout.flush()
    except SftctlError as error:
        code = report(error)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            write("\nstopped", stream=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:
        code = BROKEN_PIPE
    except Exception:
        code = _bug()
    finally:
        _give_up_closed_streams()
        if collects:
            gc.enable()
    return code


def _give_up_closed_streams() -> None:
    """Else the interpreter flushes at exit what nobody reads, and says so with an exit code of its own."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(words: list[str]) -> int:
    return _complete() if COMPLETE in os.environ else ROOT.call(words, PROGRAM)


def _complete() -> int:
    """Answer the shell. Nothing that goes wrong may be written over a half-typed line."""
    from sftctl.cli.typer_app import complete  # Typer knows the shells

    try:
        return complete(PROGRAM)
    except Exception:
        return BUG


def report(error: SftctlError) -> int:
    """Write what is wrong to standard error; the exit code that says so."""
    from sftctl.config.report import lines, render  # only an error needs them

    if isinstance(error, Interrupted):  # which went as it should
        text = "\n".join(line for problem in error.problems for line in lines(problem, word="stopped"))
    else:
        text = render(error)
    with contextlib.suppress(OSError):  # nobody is there to read it, and the exit code says the rest
        write(colour_report(text, colour=has_colour(sys.stderr)), stream=sys.stderr)
    return error.exit_code


def _bug() -> int:
    import traceback  # only a bug needs it

    traceback.print_exc()
    write(
        f"\n{PROGRAM}: this is a bug in {PROGRAM}, not in what you gave it. Please report the lines above, "
        f"with the command and its files.",
        stream=sys.stderr,
    )
    return BUG
