"""The monitor of delivery: it aborts the connections of readers that have stopped.

One deadline covers everything that is written to a client, by every writer: a transport's buffer,
TLS, or a sender thread. The kernel counts the bytes that the client has acknowledged, so that a poll
every few seconds suffices, and responses themselves do nothing for it.
"""

from __future__ import annotations

import asyncio
import fcntl
import heapq
import socket
import struct
import termios
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from regmirror.v2.connection import Connection

POLL: Final = 5.0  # seconds between two polls
# A reader takes LEAST bytes, or all that waits for it, in each WINDOW. Every line is quicker than 273
# bytes a second. TCP retransmits within twice the time of an outage, so one of a minute ends in time. A
# process that reads slowly announces room in steps of 64 KiB, or 1/16 of a large buffer.
WINDOW: Final = 120.0  # seconds
LEAST: Final = 32 * 1024  # bytes
STALLED: Final = 10.0  # seconds without LEAST bytes after which a reader has to make room for others
SHARE: Final = 16  # of the idle connections, one in so many is closed at once

_BYTES_ACKED: Final = struct.Struct("120xQ")  # of ``struct tcp_info``, since Linux 4.1
_COUNT: Final = struct.Struct("i")


@dataclass(slots=True)
class _Window:
    """The client has to have acknowledged ``goal`` bytes WINDOW seconds after ``since``."""

    since: float
    goal: int


class DeliveryMonitor:
    """Aborts the connections of readers that take nothing, or next to nothing."""

    def __init__(self) -> None:
        self._windows: dict[Connection, _Window] = {}
        self._is_counted = False  # some kernels that are not Linux count nothing: no reader is judged there

    async def watch(self, connections: Callable[[], Iterable[Connection]]) -> None:
        """Poll until cancelled."""
        while True:
            await asyncio.sleep(POLL)
            self.poll(connections(), asyncio.get_running_loop().time())

    def poll(self, connections: Iterable[Connection], now: float) -> None:
        """Compare each connection with the poll before, at ``now`` (monotonic seconds)."""
        windows = {}
        for connection in connections:
            if connection.is_idle() or connection.wire is None:
                continue
            window = self._judge(connection.wire, self._windows.get(connection), now)
            if window is not None:
                windows[connection] = window
        self._windows = windows

    def drop_slowest(self, connections: Iterable[Connection], now: float) -> bool:
        """Abort the reader that has gone longest without taking LEAST bytes, for STALLED seconds at least.

        For a server that has no descriptor left for others; returns whether there was one.
        """
        stalled = {
            connection: window
            for connection, window in self._windows.items()
            if now - window.since >= STALLED
        }
        if not stalled:
            return False
        slowest = min(stalled, key=lambda connection: stalled[connection].since)
        del self._windows[slowest]
        if slowest.wire is None or slowest not in connections:
            return False
        _abort(slowest.wire)
        return True

    def _judge(self, wire: asyncio.Transport, window: _Window | None, now: float) -> _Window | None:
        """The window that goes on; None if nothing waits for this reader, or it has been dropped."""
        try:
            taken, waiting = count_acknowledged(wire.get_extra_info("socket"))
        except (OSError, ValueError, struct.error):  # closed, or the kernel counts nothing
            return None
        self._is_counted = self._is_counted or taken > 0
        waiting += wire.get_write_buffer_size()
        if not waiting or not self._is_counted:
            return None
        if window is None or taken >= window.goal:
            return _Window(now, taken + min(LEAST, waiting))
        if now - window.since < WINDOW:
            return window
        _abort(wire)
        return None


def count_acknowledged(sock: socket.socket) -> tuple[int, int]:
    """How many bytes the peer has acknowledged, and how many the kernel has yet to deliver."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.size)
    queued = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(_COUNT.size))
    return _BYTES_ACKED.unpack(info)[0], _COUNT.unpack(queued)[0]


def _abort(wire: asyncio.Transport) -> None:
    with suppress(OSError):  # the peer has gone already
        wire.get_extra_info("socket").shutdown(socket.SHUT_RDWR)  # also ends a sender thread's duplicate
    wire.abort()


def close_longest_idle(connections: Iterable[Connection]) -> bool:
    """Close a part of the connections that wait for a request, the longest idle first.

    Returns whether there was one.
    """
    idle = [connection for connection in connections if connection.is_idle()]
    chosen = heapq.nsmallest(len(idle) // SHARE + 1, idle, key=lambda connection: connection.idle_since())
    for connection in chosen:
        connection.force_close()
    return bool(chosen)
