"""Deadlines for responses: no upstream can hold a request by sending a few bytes now and then.

An idle timeout alone does not bound a response, because each byte starts it again. So a response
has a minimum rate, and one that is kept in memory also has a deadline for all of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from regmirror.errors import UpstreamTimeout

#: Multiples of ``read_timeout`` in which a response has to reach the minimum rate.
WINDOWS: Final = 4
#: Bytes a second. Twenty downloads at once over a line of 50 KB/s are still faster.
RATE_MIN: Final = 2 * 1024
#: Bytes a second that a response kept in memory needs on average, after the first window.
SHORT_RATE: Final = 64 * 1024
#: Seconds for the body of an error or a redirect. Nobody needs it, so a new connection is cheaper.
UNWANTED: Final = 2.0


@asynccontextmanager
async def with_deadline(upstream: str, host: str, seconds: float) -> AsyncIterator[None]:
    """Raise UpstreamTimeout for what takes longer than ``seconds``."""
    try:
        async with asyncio.timeout(seconds) as deadline:
            yield
    except TimeoutError:
        if not deadline.expired():
            raise
        message = f"{host} sends its response too slowly"
        raise UpstreamTimeout(upstream, message, reason="read") from None


def short_deadline(limit: int, read_timeout: float) -> float:
    """Seconds for a body of at most ``limit`` bytes that is kept in memory."""
    return WINDOWS * read_timeout + limit / SHORT_RATE


class MinimumRate:
    """The bytes of one body against the time that was spent waiting for them.

    Time in which nobody reads does not count: a slow client is not the upstream's fault.
    """

    def __init__(self, upstream: str, read_timeout: float) -> None:
        self._upstream = upstream
        self._window = WINDOWS * read_timeout
        self._waited, self._received = 0.0, 0

    @asynccontextmanager
    async def waiting(self, host: str) -> AsyncIterator[None]:
        """Wait for a part of the body; raises UpstreamTimeout when too little came in this window."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with with_deadline(self._upstream, host, max(self._window - self._waited, 0.0)):
            yield
        self._waited += loop.time() - began

    def note(self, count: int) -> None:
        """``count`` bytes arrived; enough of them begin a new window."""
        self._received += count
        if self._received >= RATE_MIN * self._window:
            self._waited, self._received = 0.0, 0
