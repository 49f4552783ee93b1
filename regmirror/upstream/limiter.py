"""How many exchanges one upstream may have in flight, and who may not take the last of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack


class ConnectionLimiter:
    """``limit`` slots, some of which long transfers leave free for short requests.

    A manifest must not queue behind 64 layers that each take minutes. With a single slot there
    is none to spare, and everything takes turns.
    """

    class Dismissed(Exception):
        """Nobody is to wait for a slot any more."""

    def __init__(self, limit: int) -> None:
        spare = min(max(1, limit // 8), limit - 1)
        self._all = asyncio.Semaphore(limit)
        self._bulk = asyncio.Semaphore(limit - spare)
        self._waiting: set[asyncio.Timeout] = set()

    async def acquire(self, *, is_bulk: bool) -> Callable[[], None]:
        """Wait for a slot; the returned function gives it back, once, however often it is called.

        Raises Dismissed if ``dismiss`` is called meanwhile.
        """
        with ExitStack() as undo:
            if is_bulk:
                await self._wait(self._bulk)
                undo.callback(self._bulk.release)
            await self._wait(self._all)
            undo.callback(self._all.release)
            return undo.pop_all().close

    def dismiss(self) -> None:
        """Send away everybody who waits; who has a slot keeps it."""
        for waiting in self._waiting:
            if not waiting.expired():
                waiting.reschedule(asyncio.get_running_loop().time())

    async def _wait(self, slots: asyncio.Semaphore) -> None:
        # A timeout without an end, because one that is brought forward wakes its task safely: one
        # that has just been given a slot, or is cancelled by its client, included.
        try:
            async with asyncio.timeout(None) as waiting:
                self._waiting.add(waiting)
                try:
                    await slots.acquire()
                finally:
                    self._waiting.discard(waiting)
        except TimeoutError:
            raise self.Dismissed from None
