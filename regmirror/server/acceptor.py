"""The acceptor of a listening socket. It keeps enough descriptors for files and upstreams.

asyncio's own accept loop repeats an error as often as its backlog is long, and logs it each time.
"""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from regmirror.telemetry import logs

BATCH: Final = 16  # connections accepted in one turn of the loop
PAUSE: Final = 0.5  # seconds without accepting, after the process had no descriptor for it
LOG_EVERY: Final = 60.0  # seconds between two lines about rejected connections
# Half of the descriptors are for connections. A streaming response needs three more than its
# connection, and each request to an upstream has a connection and a file.
SHARE: Final = 2
DESCRIPTORS_MAX: Final = 32_768  # in use at which connections are rejected, however many are allowed
# asyncio gives each TLS connection a buffer of 256 KiB for what it receives. Its size is one for all
# connections of a process, and a smaller one costs downloads by https a fifth more CPU.
TLS_DESCRIPTORS_MAX: Final = 8_192
HANDSHAKE_MAX: Final = 10.0  # seconds
_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def raise_descriptor_limit() -> None:
    """Raise this process's soft limit of descriptors to its hard limit.

    systemd and shells start processes with a soft limit of 1024, for programs that use ``select``.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # the hard limit is above what the kernel allows by now
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Acceptor:
    """Accepts connections on one socket, which listens already and does not block.

    ``protocol`` makes the protocol of a connection. When descriptors run out, the acceptor makes
    room: ``close_idle`` and ``drop_reader`` close connections and return whether there was one.
    """

    def __init__(
        self,
        sock: socket.socket,
        tls: ssl.SSLContext | None,
        protocol: Callable[[], asyncio.BaseProtocol],
        *,
        close_idle: Callable[[], bool],
        drop_reader: Callable[[], bool],
    ) -> None:
        self._sock, self._tls, self._protocol = sock, tls, protocol
        self._close_idle, self._drop_reader = close_idle, drop_reader
        self._loop = asyncio.get_running_loop()
        self._opening: dict[asyncio.Task[None], None] = {}  # the oldest first
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._descriptors_max = min(limit // SHARE, TLS_DESCRIPTORS_MAX if tls else DESCRIPTORS_MAX)
        self._resuming: asyncio.TimerHandle | None = None
        self._rejected = 0
        self._logged_at = -LOG_EVERY
        self._loop.add_reader(sock, self._accept)

    def stop(self) -> None:
        """Accept no more, and close the socket and connections whose TLS handshake has not ended."""
        if self._resuming is not None:
            self._resuming.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()
        for task in self._opening:
            task.cancel()

    def _accept(self) -> None:
        for _ in range(BATCH):
            try:
                client, _ = self._sock.accept()
            except OSError as error:  # most often BlockingIOError: there are no more
                if error.errno in _EXHAUSTED:
                    self._pause(error)
                return
            client.setblocking(False)
            # The kernel assigns the lowest free number: at least so many descriptors are in use.
            is_full = client.fileno() >= self._descriptors_max
            if is_full and not self._make_room():
                client.close()
                self._count_rejected("too many connections")
                continue
            task = self._loop.create_task(self._open(client))
            self._opening[task] = None
            task.add_done_callback(self._opening.pop)
            if is_full:
                return  # the descriptor of the closed connection is free in the next turn of the loop

    async def _open(self, client: socket.socket) -> None:
        try:
            limit = HANDSHAKE_MAX if self._tls else None
            await self._loop.connect_accepted_socket(
                self._protocol, client, ssl=self._tls, ssl_handshake_timeout=limit
            )
        except OSError:  # the client has left, or does not speak TLS
            client.close()

    def _make_room(self) -> bool:
        """Close idle connections; if there is none, the oldest TLS handshake; if there is none, the
        slowest reader. Returns whether anything was closed.
        """
        if self._close_idle():
            return True
        oldest = next((task for task in self._opening if not (task.done() or task.cancelling())), None)
        if self._tls and oldest and oldest.cancel():
            return True
        return self._drop_reader()

    def _pause(self, error: OSError) -> None:
        self._make_room()
        self._count_rejected(error.strerror or str(error))
        self._loop.remove_reader(self._sock)
        self._resuming = self._loop.call_later(PAUSE, self._loop.add_reader, self._sock, self._accept)

    def _count_rejected(self, reason: str) -> None:
        self._rejected += 1
        now = self._loop.time()
        if now - self._logged_at >= LOG_EVERY:
            logs.log_warning("connections rejected", count=self._rejected, reason=reason)
            self._rejected, self._logged_at = 0, now
