"""Signals as something to wait for, in an event loop or by ``select``."""

from __future__ import annotations

import os
import select
import signal
import socket
from contextlib import suppress

_READ = 4096  # bytes, one for each signal


class Signals:
    """Signals that make ``fileno`` readable when they arrive.

    Not ``loop.add_signal_handler``: a loop restores the default action when it closes, so that a
    second SIGTERM would kill a server that is about to end. ``close`` leaves the signals ignored,
    without a gap.
    """

    def __init__(self, *numbers: int) -> None:
        self._taken: set[int] = set()
        self._open()
        self.take(*numbers)

    def _open(self) -> None:
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)
        # Without it, a wait would not end for a signal that arrived just before.
        signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)

    def take(self, *numbers: int) -> None:
        """Replace the action of these signals: from now on they make ``fileno`` readable."""
        for number in numbers:
            signal.signal(number, _do_nothing)
            self._taken.add(number)

    def fileno(self) -> int:
        return self._receiver.fileno()

    def read(self) -> set[int]:
        """The signals that have arrived since the last call, each once."""
        with suppress(BlockingIOError):
            return set(self._receiver.recv(_READ)) & self._taken
        return set()

    def wait(self, *others: int) -> set[int]:
        """Wait for a signal, or until one of the descriptors ``others`` is readable."""
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
        """Fork; the child's own ``Signals`` has the signals ``kept`` alone.

        The others have their default action there. No signal that arrives meanwhile is lost, or
        delivered to the wrong process.
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
    """Nothing: Python has written the signal's number to the wake-up descriptor already."""
