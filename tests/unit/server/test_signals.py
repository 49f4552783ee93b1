"""Signals that arrive on a descriptor."""

import os
import select
import signal
from collections.abc import Iterator

import pytest

from regmirror.server.signals import Signals


@pytest.fixture
def signals() -> Iterator[Signals]:
    """The signal USR1, whose action is restored afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    signals = Signals(signal.SIGUSR1)
    yield signals
    signals.close()
    for number, action in before.items():
        signal.signal(number, action)


def is_readable(signals: Signals) -> bool:
    return bool(select.select([signals.fileno()], [], [], 0)[0])


def test_a_signal_makes_the_descriptor_readable_once(signals: Signals) -> None:
    assert not is_readable(signals)
    assert signals.read() == set()
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGUSR1)
    assert is_readable(signals)
    assert signals.read() == {signal.SIGUSR1}
    assert signals.read() == set()


def test_a_signal_can_be_added(signals: Signals) -> None:
    signals.take(signal.SIGUSR2)
    os.kill(os.getpid(), signal.SIGUSR2)
    assert signals.wait() == {signal.SIGUSR2}


def test_a_wait_also_ends_by_another_descriptor(signals: Signals) -> None:
    reader, writer = os.pipe()
    os.write(writer, b".")
    assert signals.wait(reader) == set()
    os.close(reader)
    os.close(writer)


def test_closed_signals_are_ignored(signals: Signals) -> None:
    signals.close()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
    signals._open()  # the fixture closes it


def test_a_child_has_its_own_signals(signals: Signals) -> None:
    """A signal to the child is not read by the parent; other signals have their default action."""
    reader, writer = os.pipe()
    pid = signals.fork(signal.SIGUSR2)
    if pid == 0:
        try:
            is_default = signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
            os.write(writer, b".")
            os._exit(7 if signals.wait() == {signal.SIGUSR2} and is_default else 1)
        finally:
            os._exit(2)
    os.read(reader, 1)
    os.kill(pid, signal.SIGUSR2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert signals.read() == set()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert signals.read() == {signal.SIGUSR1}
    os.close(reader)
    os.close(writer)
