"""A fake registry whose port is on another host, while its journal and its faults are at hand here."""

from __future__ import annotations

import socket

from tests.e2e.parts.networks import SecondHost
from tests.fake_registry import FakeRegistry


class FarRegistry(FakeRegistry):
    """Listens inside the namespace; `hostname` is another name for its address, if there is one."""

    def __init__(self, host: SecondHost, hostname: str = "") -> None:
        super().__init__(hostname=hostname or host.address)
        self._second_host = host

    def listen(self) -> socket.socket:
        return self._second_host.listen(self.port)
