"""Ctrl-C, SIGTERM, SIGHUP: before the first step a run leaves at once, from then on after the step, with a checkpoint.

A second Ctrl-C leaves at once too. What was received is remembered even where an exception is raised for it: a
library may swallow a KeyboardInterrupt that hits it in a callback, and the run then stops at its first step.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType


class StopSignals:
    """Inside, these signals raise KeyboardInterrupt; in `deferred` the first only sets `received`.

    A second one that is not Ctrl-C is ignored there: a scheduler repeats SIGTERM while a checkpoint is written.
    SIGHUP, of a terminal that is closed, stays ignored where it was (nohup). Handlers can be set by the main thread
    alone; in another one this does nothing.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._is_deferred = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """While steps are made: whoever makes them looks at `received` after each."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

    def hang_up(self) -> None:
        """Whoever listened has gone: stop after a step, as after a signal."""
        self.received = self.received or "the end of its output"

    def _receive(self, number: int, frame: FrameType | None) -> None:
        is_first, self.received = self.received is None, self.received or signal.Signals(number).name
        if not self._is_deferred or (number == signal.SIGINT and not is_first):
            raise KeyboardInterrupt


@contextmanager
def handed_on(children: Callable[[], Iterable[int]]) -> Iterator[list[int]]:
    """Inside, SIGTERM goes to the processes `children()`; Ctrl-C, which a terminal sends to all, is theirs alone.

    Gives the signals that came.
    """
    received: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for child in children():
            os.kill(child, number)

    # SIGQUIT because torch's launcher sets a handler of its own and leaves it.
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, hand_on)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
