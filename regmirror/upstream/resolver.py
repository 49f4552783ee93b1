"""Names of hosts, looked up in threads of each upstream's own.

A name server that does not answer holds a thread for half a minute. The loop's own threads are
few, and files are read and stored in them: one upstream's names must not stop those (B35).
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
        """Wait for nobody: a look-up cannot be broken off."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _result(host: str, port: int, found: tuple[int, int, str]) -> ResolveResult:
    family, protocol, address = found
    flags = socket.AI_NUMERICHOST
    return ResolveResult(hostname=host, host=address, port=port, family=family, proto=protocol, flags=flags)


def look_up(host: str, port: int, family: socket.AddressFamily) -> list[tuple[int, int, str]]:
    """Family, protocol and address of every way to ``host``; raises OSError if there is none."""
    found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return [(kind, protocol, _written(address)) for kind, _, protocol, _, address in found]


def _written(address: tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]) -> str:
    """An address as text; a link-local one with the interface that it is valid on."""
    if len(address) == 4 and address[3]:
        return socket.getnameinfo(address, socket.NI_NUMERICHOST)[0]
    return str(address[0])
