"""How many downloads may wait for their upstream's response at once, of each upstream.

A download that waits holds descriptors and a file. A client that invents digests could have any number
of them; beyond the limit a download holds nothing but its place.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from regmirror.downloads.download import Download
from regmirror.errors import Unavailable

STARTING_MAX: Final = 64  # downloads of one upstream without a response, in one worker
TURN_MAX: Final = 20.0  # seconds a download waits for its turn; containerd waits 30 for headers


class StartLimiter:
    """The downloads that have no response yet, counted by the upstream they were admitted for."""

    def __init__(self, limit: int = STARTING_MAX, turn_max: float = TURN_MAX) -> None:
        self._limit, self._turn_max = limit, turn_max
        self._count: Counter[str] = Counter()
        self._queue: list[Download] = []

    @asynccontextmanager
    async def admitted(self, download: Download) -> AsyncIterator[None]:
        """Wait until the download may begin; it counts until it has started or ended."""
        upstream = await self._wait(download)
        watching = asyncio.create_task(self._release_when_started(download, upstream))
        try:
            yield
        finally:
            download.is_over = True
            download.change()
            await watching

    async def _wait(self, download: Download) -> str:
        self._queue.append(download)
        try:
            async with asyncio.timeout(self._turn_max):
                while (upstream := self._admit(download)) is None:
                    await download.wait_changed()
        except TimeoutError:
            upstream = download.source.repository.upstream
            message = f"{self._limit} downloads wait for {upstream} already"
            raise Unavailable(message, retry_after=5) from None
        finally:
            self._queue.remove(download)
        return upstream

    def _admit(self, download: Download) -> str | None:
        """Turn to a source whose upstream has room, if there is one."""
        for source in download.sources:
            upstream = source.repository.upstream
            if self._count[upstream] < self._limit:
                download.turn_to(source)
                self._count[upstream] += 1
                return upstream
        return None

    async def _release_when_started(self, download: Download, upstream: str) -> None:
        while not (download.started or download.is_over):
            await download.wait_changed()
        self._count[upstream] -= 1
        for waiting in self._queue:
            waiting.change()
