"""Two sides of a comparison, each a process of its own that answers tasks, a line of JSON each: ours, and a peer's.

A process is started with `--serve NAME` and keeps its libraries loaded, so that a task measures work and no start.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

QUIET = {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}


def serve(work: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> None:
    """Answer each task on standard input; whatever libraries print goes to standard error."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        print(json.dumps(work(json.loads(line))), file=answers, flush=True)


class Side:
    """A process that measures tasks: `script --serve name` in `python`."""

    def __init__(self, name: str, python: str, *, script: str, environment: Mapping[str, str]) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [python, str(Path(script).resolve()), "--serve", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **QUIET, **environment},
        )

    def ask(self, task: Mapping[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(task), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"the process of {self.name} ended without an answer; its errors are above")
        found: dict[str, Any] = json.loads(answer)
        return found

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@contextlib.contextmanager
def sides(peer_python: str | None, *, script: str, environment: Mapping[str, str]) -> Iterator[dict[str, Side]]:
    """Ours in this python, and the peer's where one is named."""
    pythons = {"ours": sys.executable} | ({"peer": peer_python} if peer_python else {})
    with contextlib.ExitStack() as stack:
        running = {
            name: stack.enter_context(contextlib.closing(Side(name, python, script=script, environment=environment)))
            for name, python in pythons.items()
        }
        yield running
