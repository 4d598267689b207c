"""A run of several processes: started by torch's own elastic launcher, or joined where torchrun has started them.

    in_ranks(distributed, work)     one process, or already one of many: work() here
                                    else nproc_per_node processes of this machine run work(), rank 0's result comes back

An error of one rank ends all of them and is raised once, here, as if it had happened here. Ctrl-C reaches the
ranks by itself, SIGTERM is handed on to them: they agree on a step, save, and leave together.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from sftctl.config.schema import Distributed
from sftctl.engine.run.signals import handed_on
from sftctl.errors import Interrupted, Problem, SftctlError, TrainingError

Result = TypeVar("Result")

MEETING_SECONDS = 900
"""How long machines wait for each other at the start."""

GRACE_SECONDS = 4
"""How long a rank that has failed waits for others, which may know why, or have to write it down."""


def in_ranks(distributed: Distributed, work: Callable[[], Result]) -> Result | None:
    """Run `work` in every process that `distributed` asks for; rank 0's result, None on a machine without rank 0.

    Raises what a rank raised; TrainingError where one ended without a word.
    """
    if is_rank():
        return work() if _Launched.here else _with_one_voice(work)
    if distributed.nproc_per_node * distributed.nnodes == 1:
        return work()
    with tempfile.TemporaryDirectory(prefix="sftctl-ranks-") as folder:
        return _launch(distributed, work, Path(folder))


def is_rank() -> bool:
    """Whether a launcher has started this process as one of many."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def _with_one_voice(work: Callable[[], Result]) -> Result:
    """Under torchrun: the first rank that fails raises its error, the others leave without a word."""
    from sftctl.engine.ranks import distributed  # torch: by now there is a need

    try:
        return work()
    except Exception as error:
        if distributed.is_first_to_fail():
            raise
        leave_quietly(error.exit_code if isinstance(error, SftctlError) else 1)


def leave_quietly(code: int) -> NoReturn:
    """End this rank, since another tells what is wrong: not before it has, for a launcher ends all with the first."""
    time.sleep(GRACE_SECONDS)
    sys.exit(code)


# ---------------------------------------------------------------------- the launcher's side


def _launch(distributed: Distributed, work: Callable[[], Result], folder: Path) -> Result | None:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # torch: once there is a need
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("torch.distributed.elastic", "torch.distributed.launcher", "torch.multiprocessing"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what they say, we say
    many = distributed.nnodes > 1
    config = LaunchConfig(
        min_nodes=distributed.nnodes,
        max_nodes=distributed.nnodes,
        nproc_per_node=distributed.nproc_per_node,
        run_id="sftctl",
        rdzv_backend="static" if many else "c10d",
        rdzv_endpoint=distributed.rdzv_endpoint if many and distributed.rdzv_endpoint else "localhost:0",
        rdzv_configs={"rank": distributed.node_rank, "timeout": MEETING_SECONDS} if many else {},
        max_restarts=0,
        start_method=_start_method(),
        signals_to_handle="SIGQUIT",
        local_addr=None if many else "localhost",
    )
    sys.stdout.flush()
    sys.stderr.flush()
    with handed_on(_ranks_here) as received:
        try:
            ended: dict[int, _Ended] = elastic_launch(config, _rank)(work, str(folder))
        except ChildFailedError as failed:
            codes = {rank: failure.exitcode for rank, failure in failed.failures.items()}
            raise _error_of(folder, codes, received) from None
    first = ended[min(ended)]
    if first.stopped is not None:
        raise first.stopped.error()
    return first.result if 0 in ended else None


def _start_method() -> str:
    """Forking takes no time and has everything loaded; what has touched CUDA must not fork, and macOS' libraries."""
    import torch  # in use already

    return "fork" if sys.platform == "linux" and not torch.cuda.is_available() else "spawn"


def _ranks_here() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


def _error_of(folder: Path, codes: dict[int, int], received: list[int]) -> BaseException:
    """The one error to tell of: the first that a rank could say, what a user can mend before what follows from it."""
    said: list[_Word] = sorted(
        (pickle.loads(path.read_bytes()) for path in folder.glob("*.pickle")), key=lambda each: each.time
    )
    for each in said:
        if each.kind is not None:
            return each.error()
    for rank, code in codes.items():
        if code < 0 and -code in (*received, signal.SIGINT):
            return KeyboardInterrupt()  # before the first step there is nothing to save
        if code < 0:
            message = f"rank {rank} was killed by {signal.Signals(-code).name}"
            help = "if that was the system's memory running out, make the micro-batch smaller"
            return TrainingError(Problem("", message, help=help))
    if said:
        return said[0].error()
    ended = ", ".join(f"rank {rank} with code {code}" for rank, code in codes.items())
    return TrainingError(Problem("", f"a process ended without a word: {ended}", help="the same command goes on"))


# ---------------------------------------------------------------------- a rank's side


@dataclass(frozen=True, slots=True)
class _Word:
    """An error on its way to the launcher. `kind` is a child of SftctlError, or None for a bug, with its trace."""

    time: float
    kind: type[SftctlError] | None
    problems: tuple[Problem, ...] = ()
    trace: str = ""

    def error(self) -> Exception:
        if self.kind is not None:
            return self.kind(*self.problems)
        bug = RankBug(self.trace.rpartition("\n")[2])
        bug.add_note(self.trace)
        return bug


class RankBug(Exception):
    """A bug of ours in another process: its last line, the traceback there as a note."""


@dataclass(frozen=True, slots=True)
class _Ended:
    """How a rank ended that did not fail."""

    result: Any = None
    stopped: _Word | None = None


class _Launched:
    """Whether this process is a rank that the launcher above has started."""

    here = False


def _rank(work: Callable[[], Any], folder: str) -> _Ended:
    """What the launcher calls in each process."""
    _Launched.here = True
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    from sftctl.engine.ranks import distributed  # torch: by now it is there

    _await_all_here(Path(folder))
    try:
        distributed.share_cores()
        ended = _Ended(work())
    except Interrupted as error:  # on every rank, at the same step
        ended = _Ended(stopped=_Word(time.time(), type(error), error.problems))
    except KeyboardInterrupt:  # of Ctrl-C or SIGTERM: the launcher is to see that a signal ended this rank
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        raise
    except BaseException as error:
        word = _word_of(error)
        _leave(word, Path(folder) / f"{os.environ['RANK']}.pickle")
        sys.stdout.flush()
        _let_others_speak(word, Path(folder))
        os._exit(1)  # at once: the others may be waiting for this one
    distributed.stop()
    return ended


def _await_all_here(folder: Path) -> None:
    """Connect to nothing before the last rank of this machine has been forked.

    The launcher's store looks up the name of whoever connects, in a thread of its own, and glibc's resolver has a
    lock: a rank that is forked at that moment has it locked for good, and waits for it at its first connection.
    """
    (folder / f"{os.environ['LOCAL_RANK']}.here").touch()
    while len(list(folder.glob("*.here"))) < int(os.environ["LOCAL_WORLD_SIZE"]):
        time.sleep(0.01)


def _leave(word: _Word, path: Path) -> None:
    """Whole or not at all: the launcher may end this process at any moment now."""
    aside = path.with_suffix(".writing")
    aside.write_bytes(pickle.dumps(word))
    aside.rename(path)


def _let_others_speak(word: _Word, folder: Path) -> None:
    """The launcher ends all ranks once it sees that one has gone, and knows of that one alone.

    The main one may still be writing down how the run ended. And what looks like a bug may be a connection that
    another rank broke when it was killed: that one is to be seen first.
    """
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline:
        if word.kind is not None and (os.environ["RANK"] == "0" or (folder / "0.pickle").exists()):
            return
        time.sleep(0.05)


def _word_of(error: BaseException) -> _Word:
    if isinstance(error, SftctlError):
        return _Word(time.time(), type(error), error.problems)
    return _Word(time.time(), None, trace="".join(traceback.format_exception(error)).rstrip())
