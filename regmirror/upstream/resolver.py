"""The DNS resolver of one upstream, with threads of its own.

A name server that does not respond blocks a thread for half a minute. The event loop's threads are
few and also read and write files: one upstream's DNS must not block those (B35).
"""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from aiohttp.abc import AbstractResolver, ResolveResult

THREADS: Final = 2  # the upstream's own name, and that of its storage


class DnsResolver(AbstractResolver):
    """The resolver of one upstream's connections."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, "names")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await asyncio.get_running_loop().run_in_executor(self._threads, look_up, host, port, family)
        return [_result(host, port, item) for item in found]

    async def close(self) -> None:
        """Shut down without waiting, because a lookup cannot be cancelled."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _result(host: str, port: int, found: tuple[int, int, str]) -> ResolveResult:
    family, protocol, address = found
    flags = socket.AI_NUMERICHOST
    return ResolveResult(hostname=host, host=address, port=port, family=family, proto=protocol, flags=flags)


def look_up(host: str, port: int, family: socket.AddressFamily) -> list[tuple[int, int, str]]:
    """Family, protocol and address of every endpoint of ``host``; raises OSError if there is none."""
    found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return [(kind, protocol, _written(address)) for kind, _, protocol, _, address in found]


def _written(address: tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]) -> str:
    """An address as text; a link-local one with its interface."""
    if len(address) == 4 and address[3]:
        return socket.getnameinfo(address, socket.NI_NUMERICHOST)[0]
    return str(address[0])
