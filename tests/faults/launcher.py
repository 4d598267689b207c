"""Many runs of `sftctl`, each in a process of its own that can be killed, without importing torch for each.

A server process imports everything once and forks for each request; the fork calls the command line's own `main`.
Used by the fault tests and by benchmarks/kills.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path


class Started:
    """A run in progress. `said` is what it has written so far, standard error among it."""

    def __init__(self, launcher: Launcher, pid: int, log: Path) -> None:
        self.launcher = launcher
        self.pid = pid
        self.log = log

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def send(self, signal: int) -> None:
        os.kill(self.pid, signal)

    def wait(self) -> int:
        """The exit code; minus the signal's number where one ended it."""
        return int(self.launcher.ask({"wait": self.pid})["code"])

    def is_running(self) -> bool:
        """Whether it has not ended yet; a zombie has."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        except OSError:
            return False

    def wait_until(self, condition: object, *, seconds: float = 60.0) -> None:
        """Wait until `condition()` holds; an error with what the run said when it ended or took too long."""
        deadline = time.monotonic() + seconds
        while not condition():  # type: ignore[operator]
            assert self.is_running(), f"the run ended early:\n{self.said}"
            assert time.monotonic() < deadline, f"waited {seconds} s in vain:\n{self.said}"
            time.sleep(0.005)


class Launcher:
    """The server's client. One server a session; runs may overlap."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.count = 0
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, request: dict[str, object]) -> dict[str, int]:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        answer: dict[str, int] = json.loads(self.server.stdout.readline())
        return answer

    def start(self, *arguments: str, patch: str = "") -> Started:
        """Start `sftctl ARGUMENTS`. `patch` is Python that runs in its process first, to bring a fault about."""
        self.count += 1
        log = self.logs / f"{self.count}.log"
        log.touch()
        pid = self.ask({"arguments": arguments, "log": str(log), "patch": patch})["pid"]
        return Started(self, pid, log)

    def run(self, *arguments: str, patch: str = "") -> tuple[int, str]:
        """Run `sftctl ARGUMENTS` to its end: (exit code, what it said)."""
        started = self.start(*arguments, patch=patch)
        return started.wait(), started.said

    def close(self) -> None:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()


def _child(arguments: Sequence[str], log: str, patch: str) -> None:
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    code = 70
    try:
        from sftctl.cli.app import main

        exec(patch, {})
        code = main(arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    import torch
    import torch.distributed.checkpoint
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401 - what a run will need

    import sftctl.engine.driver  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer = {"code": os.waitstatus_to_exitcode(status)}
        else:
            pid = os.fork()
            if pid == 0:
                _child(request["arguments"], request["log"], request["patch"])
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
