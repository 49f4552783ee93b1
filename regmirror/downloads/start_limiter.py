"""A limit on the downloads that wait for a response of their upstream, for each upstream.

A client can request any number of invented digests. A waiting download occupies a file and its
descriptor; beyond the limit it occupies only its place in the queue.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Final

from regmirror.downloads.download import Download
from regmirror.errors import Unavailable

STARTING_MAX: Final = 64  # downloads of one upstream without a response, in one worker
TURN_MAX: Final = 20.0  # seconds that a download waits for its turn; containerd waits 30 for headers


class StartLimiter:
    """Counts the downloads that have no response yet, by the upstream they were admitted for."""

    def __init__(self, limit: int = STARTING_MAX, turn_max: float = TURN_MAX) -> None:
        self._limit, self._turn_max = limit, turn_max
        self._count: Counter[str] = Counter()
        self._queue: list[Download] = []

    @asynccontextmanager
    async def admit(self, download: Download) -> AsyncIterator[None]:
        """Wait until the download may start; it is counted until its content arrives or it ends.

        Raises Unavailable after ``turn_max`` seconds.
        """
        upstream = await self._wait_for_turn(download)
        with ExitStack() as counted:
            counted.callback(self._release, upstream)
            download.when_started(counted.close)
            yield

    async def _wait_for_turn(self, download: Download) -> str:
        self._queue.append(download)
        try:
            async with asyncio.timeout(self._turn_max):
                while (upstream := self._find_turn(download)) is None:
                    await download.wait_changed()
        except TimeoutError:
            message = f"{self._limit} downloads wait for {download.repository.upstream} already"
            raise Unavailable(message, retry_after=5) from None
        finally:
            self._queue.remove(download)
        return upstream

    def _find_turn(self, download: Download) -> str | None:
        """Count the download for the first of its sources whose upstream is below the limit."""
        for source in download.sources.untried:
            upstream = source.repository.upstream
            if self._count[upstream] < self._limit:
                download.sources.prefer(source)
                self._count[upstream] += 1
                return upstream
        return None

    def _release(self, upstream: str) -> None:
        self._count[upstream] -= 1
        for waiting in self._queue:
            waiting.notify()
