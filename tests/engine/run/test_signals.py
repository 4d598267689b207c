"""When a signal leaves at once, and when it waits for the end of a step."""

import os
import signal

import pytest

from sftctl.engine.run.signals import StopSignals


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_before_the_steps_it_leaves_at_once_and_is_remembered(number):
    with StopSignals() as signals:
        with pytest.raises(KeyboardInterrupt):
            send(number)
        assert signals.received == number.name


def test_in_the_steps_the_first_waits_a_second_ctrl_c_leaves_and_a_second_sigterm_does_not():
    with StopSignals() as signals, signals.deferred():
        send(signal.SIGTERM)
        assert signals.received == "SIGTERM"
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_after_the_steps_it_leaves_at_once_again():
    with StopSignals() as signals:
        with signals.deferred():
            send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            send(signal.SIGHUP)
        assert signals.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_handlers_of_before_come_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopSignals():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
