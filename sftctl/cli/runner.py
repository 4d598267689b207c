"""A run in a process of its own, so that one that fails or is killed leaves the next one whole.

The process is forked before torch is imported, so nothing is loaded or resolved twice; its report comes back
through a pipe as JSON. Where the system cannot fork (Windows) the run happens in this process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sftctl.engine.run.signals import handed_on
from sftctl.errors import Interrupted, SftctlError

if TYPE_CHECKING:
    from sftctl.records import RunResult

Train = Callable[[], "RunResult | None"]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended: its directory and last metrics, or what went wrong in a line, or that it was stopped."""

    path: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    stopped: bool = False


def run_apart(train: Train) -> Ended:
    """Run `train` in a child process and wait for it. Ctrl-C and SIGTERM are the child's, which saves and ends."""
    if not hasattr(os, "fork"):
        return Ended(**_run(train))
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    children: list[int] = []
    with handed_on(lambda: children), os.fdopen(reading, encoding="utf-8") as stream:
        child = os.fork()
        if child == 0:
            _be_the_child(train, writing)
        children.append(child)
        os.close(writing)
        said = stream.read()
        _, status = os.waitpid(child, 0)
    if said:
        return Ended(**json.loads(said))
    code = os.waitstatus_to_exitcode(status)
    cause = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended without a word, with code {code}"
    return Ended(problem=f"the process {cause}")


def _be_the_child(train: Train, writing: int) -> None:
    """Run, report, and leave without running what the parent registered for its own exit."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        report = _run(train)
        with os.fdopen(writing, "w", encoding="utf-8") as stream:
            json.dump(report, stream, default=str)
        sys.stdout.flush()
        sys.stderr.flush()
        code = 0
    finally:
        os._exit(code)


def _run(train: Train) -> dict[str, Any]:
    """What `Ended` is made of. Whatever goes wrong is written to standard error and told in a line."""
    from sftctl.cli.app import report  # the one way errors are written

    try:
        result = train()
    except Interrupted as error:
        report(error)
        return {"stopped": True}
    except KeyboardInterrupt:
        return {"stopped": True}
    except SftctlError as error:
        report(error)
        return {"problem": _first_clause(error)}
    except Exception as error:
        traceback.print_exc()
        return {"problem": f"a bug of ours: {type(error).__name__}: {error}"}
    return {"path": str(result.path), "metrics": dict(result.last_metrics)} if result is not None else {}


def _first_clause(error: SftctlError) -> str:
    """What went wrong, short enough for a table: the whole of it was just written."""
    message = error.problems[0].message if error.problems else str(error)
    return message.partition("\n")[0].partition("; ")[0]
