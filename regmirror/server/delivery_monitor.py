"""The open connections of a worker: which readers have stopped, and which connections may be closed.

One deadline covers everything that is written to a client, by every writer: a transport's buffer,
TLS, or a sender thread. The kernel counts what the client has acknowledged, so that a look every few
seconds suffices and the responses themselves do nothing for it.
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
from typing import Final, Protocol

LOOK: Final = 5.0  # seconds between two looks
# A reader takes LEAST bytes, or all that waits for it, in each WINDOW. Every line is quicker than 273
# bytes a second. TCP retransmits within twice the time of an outage, so one of a minute ends in time. A
# process that reads slowly announces room in steps of 64 KiB, or 1/16 of a large buffer.
WINDOW: Final = 120.0  # seconds
LEAST: Final = 32 * 1024  # bytes
STALLED: Final = 10.0  # seconds without LEAST bytes after which a reader has to make room for others
SHARE: Final = 16  # of the idle connections, one in so many is closed at once

_BYTES_ACKED: Final = struct.Struct("120xQ")  # of ``struct tcp_info``, since Linux 4.1
_COUNT: Final = struct.Struct("i")


class Connection(Protocol):
    """One client's connection."""

    def is_idle(self) -> bool:
        """Whether it waits for a request, and everything has been written."""
        ...

    def idle_since(self) -> float:
        """When it was last used, to compare with others."""
        ...

    def force_close(self) -> None: ...


Open = tuple[Connection, asyncio.Transport]


@dataclass(slots=True)
class _Window:
    """The client has to have acknowledged ``goal`` bytes WINDOW seconds after ``since``."""

    since: float
    goal: int


class DeliveryMonitor:
    """Aborts the connections of readers that take nothing, or next to nothing."""

    def __init__(self) -> None:
        self._windows: dict[Connection, _Window] = {}
        self._is_counted = False  # some kernels that are not Linux count nothing: then nobody is judged

    async def watch(self, connections: Callable[[], Iterable[Open]]) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(LOOK)
            self.look(connections(), asyncio.get_running_loop().time())

    def look(self, connections: Iterable[Open], now: float) -> None:
        """Compare each connection with the last look, at ``now`` (monotonic seconds)."""
        windows = {}
        for connection, transport in list(connections):
            if connection.is_idle():
                continue
            window = self._judge(transport, self._windows.get(connection), now)
            if window is not None:
                windows[connection] = window
        self._windows = windows

    def drop_slowest(self, connections: Iterable[Open], now: float) -> bool:
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
        for connection, transport in connections:
            if connection is slowest:
                _abort(transport.get_extra_info("socket"), transport)
                return True
        return False

    def _judge(self, transport: asyncio.Transport, window: _Window | None, now: float) -> _Window | None:
        """The window that goes on; None if nothing waits for this reader, or it has been dropped."""
        sock = transport.get_extra_info("socket")
        try:
            taken, waiting = _count(sock)
        except (OSError, ValueError, struct.error):  # closed, or nothing that can be counted
            return None
        self._is_counted = self._is_counted or taken > 0
        waiting += transport.get_write_buffer_size()
        if not waiting or not self._is_counted:
            return None
        if window is None or taken >= window.goal:
            return _Window(now, taken + min(LEAST, waiting))
        if now - window.since < WINDOW:
            return window
        _abort(sock, transport)
        return None


def _count(sock: socket.socket) -> tuple[int, int]:
    """How many bytes the peer has acknowledged, and how many the kernel still has for it."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.size)
    queued = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(_COUNT.size))
    return _BYTES_ACKED.unpack(info)[0], _COUNT.unpack(queued)[0]


def _abort(sock: socket.socket, transport: asyncio.Transport) -> None:
    with suppress(OSError):  # the peer has gone already
        sock.shutdown(socket.SHUT_RDWR)  # ends what a sender thread is writing by a duplicate, too
    transport.abort()


def close_longest_idle(connections: Iterable[Connection]) -> int:
    """Close some connections that wait for a request, the longest idle first; how many."""
    idle = [connection for connection in connections if connection.is_idle()]
    chosen = heapq.nsmallest(len(idle) // SHARE + 1, idle, key=lambda connection: connection.idle_since())
    for connection in chosen:
        connection.force_close()
    return len(chosen)
