"""Signals as something to wait for, in an event loop or by ``select``."""

from __future__ import annotations

import os
import select
import signal
import socket
from contextlib import suppress

_READ = 4096  # bytes, one for each signal


class Signals:
    """The signals that were taken: each that arrives makes ``fileno`` readable.

    Not ``loop.add_signal_handler``, since a loop gives its signals back their deadly default
    when it closes: a second SIGTERM would then kill a server that is about to end well. Closing
    this leaves them ignored, without a gap.
    """

    def __init__(self, *numbers: int) -> None:
        self._taken: set[int] = set()
        self._open()
        self.take(*numbers)

    def _open(self) -> None:
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)
        # Without it a signal that arrives just before a wait would be noticed after it.
        signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)

    def take(self, *numbers: int) -> None:
        """Wait for these as well, instead of what they did so far."""
        for number in numbers:
            signal.signal(number, _do_nothing)
            self._taken.add(number)

    def fileno(self) -> int:
        return self._receiver.fileno()

    def read(self) -> set[int]:
        """Those that have arrived since the last look, however often."""
        with suppress(BlockingIOError):
            return set(self._receiver.recv(_READ)) & self._taken
        return set()

    def wait(self, *others: int) -> set[int]:
        """Wait for a signal, or until one of the descriptors ``others`` can be read."""
        select.select([self.fileno(), *others], [], [])
        return self.read()

    def close(self) -> None:
        """Ignore them from now on."""
        for number in self._taken:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        self._receiver.close()
        self._sender.close()

    def fork(self, *kept: int) -> int:
        """``os.fork``; in the child this is its own, with the signals ``kept`` alone.

        The others have their default there. A signal that arrives meanwhile is neither lost
        nor told to the wrong process.
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
    """Python writes the signal's number to the wake-up descriptor; that is all that is wanted."""
