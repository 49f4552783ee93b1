"""Hosts that never respond, for timeouts before any HTTP."""

import socket
from typing import Self


class BlackHole:
    """A port that never responds.

    With accepts=True the kernel completes the TCP handshake and then silence follows, TLS included;
    with accepts=False connecting itself hangs, because the queue of the listening socket is full.
    """

    def __init__(self, *, accepts: bool = True) -> None:
        self.accepts = accepts
        self.host = ""
        self._listening: socket.socket | None = None
        self._fillers: list[socket.socket] = []

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    async def __aenter__(self) -> Self:
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=128 if self.accepts else 0)
        address = self._listening.getsockname()
        self.host = f"127.0.0.1:{address[1]}"
        if not self.accepts:
            self._fill(address)
        return self

    async def __aexit__(self, *error: object) -> None:
        for opened in [*self._fillers, self._listening]:
            if opened:
                opened.close()

    def _fill(self, address: tuple[str, int]) -> None:
        """Linux queues one connection more than the backlog, and drops what comes after."""
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(address)
            self._fillers.append(filler)
