"""Signals that arrive on a descriptor, for an event loop or ``select``."""

from __future__ import annotations

import os
import select
import signal
import socket
from contextlib import suppress
from typing import Final

_READ_MAX: Final = 4096  # bytes of one read; each signal is one byte


class Signals:
    """A set of signals; ``fileno`` is readable when one has arrived.

    ``loop.add_signal_handler`` is not used, because a closing loop restores the default action: a
    second SIGTERM would kill a server that is ending. ``close`` makes the process ignore the signals.
    """

    def __init__(self, *numbers: int) -> None:
        self._taken: set[int] = set()
        self._open()
        self.take(*numbers)

    def _open(self) -> None:
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)
        # A signal that arrives just before ``wait`` makes the descriptor readable and ends the wait.
        signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)

    def take(self, *numbers: int) -> None:
        """Add signals to the set, in place of their current action."""
        for number in numbers:
            signal.signal(number, _do_nothing)
            self._taken.add(number)

    def fileno(self) -> int:
        return self._receiver.fileno()

    def read(self) -> set[int]:
        """The signals that have arrived since the last call."""
        with suppress(BlockingIOError):
            return set(self._receiver.recv(_READ_MAX)) & self._taken
        return set()

    def wait(self, *others: int) -> set[int]:
        """Wait for a signal or until one of the descriptors ``others`` is readable; the signals."""
        select.select([self.fileno(), *others], [], [])
        return self.read()

    def close(self) -> None:
        """Ignore the signals from now on."""
        for number in self._taken:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        self._receiver.close()
        self._sender.close()

    def fork(self, *kept: int) -> int:
        """Fork, and return the child's process id, or 0 in the child.

        In the child the set contains the signals ``kept`` alone; the others have their default
        action. Signals are blocked meanwhile, so that none is lost or read by the other process.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, self._taken | set(kept))
        try:
            pid = os.fork()
            if pid == 0:
                for number in self._taken:
                    signal.signal(number, signal.SIG_DFL)
                self._receiver.close()  # the parent's
                self._sender.close()
                self._taken = set()
                self._open()
                self.take(*kept)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return pid


def _do_nothing(_number: int, _frame: object) -> None:
    """Python has already written the signal's number to the wake-up descriptor."""
