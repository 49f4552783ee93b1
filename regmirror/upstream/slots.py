"""How many exchanges one upstream may have in flight, and who may not take the last of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack


class Slots:
    """``limit`` slots, some of which long transfers leave free for short requests.

    A manifest must not queue behind 64 layers that each take minutes. With a single slot there
    is none to spare, and everything takes turns.
    """

    def __init__(self, limit: int) -> None:
        spare = min(max(1, limit // 8), limit - 1)
        self._all = asyncio.Semaphore(limit)
        self._bulk = asyncio.Semaphore(limit - spare)

    async def acquire(self, *, is_bulk: bool) -> Callable[[], None]:
        """Wait for a slot; the returned function gives it back, once, however often it is called."""
        with ExitStack() as undo:
            if is_bulk:
                await self._bulk.acquire()
                undo.callback(self._bulk.release)
            await self._all.acquire()
            undo.callback(self._all.release)
            return undo.pop_all().close
