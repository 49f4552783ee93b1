"""Failures of the database: report them, and replace a database that is lost or damaged."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from regmirror.metadata.recovery import DatabaseMonitor, RecoveryFailed, looks_damaged
from regmirror.telemetry.events import Emit, NotStored

EXAMINATION_INTERVAL: Final = 5.0  # seconds between two examinations of a database that seems damaged


class DatabaseHealth:
    """The database as one process sees it.

    ``on_replaced`` is awaited when another database has taken its place; ``clock`` is monotonic
    seconds. Without a ``monitor`` failures are only reported.
    """

    def __init__(
        self,
        emit: Emit,
        monitor: DatabaseMonitor | None,
        on_replaced: Callable[[], Awaitable[None]],
        clock: Callable[[], float],
    ) -> None:
        self._monitor = monitor
        self._emit, self._on_replaced, self._clock = emit, on_replaced, clock
        self._examined_at = -EXAMINATION_INTERVAL
        self._examination: asyncio.Task[None] | None = None

    def report(self, error: Exception) -> None:
        """Emit the failure of a read or a write; examine the database if the error means damage."""
        message = str(getattr(error, "orig", error))
        self._emit(NotStored("database", message))
        if looks_damaged(message) and self._clock() >= self._examined_at + EXAMINATION_INTERVAL:
            self._examined_at = self._clock()
            self._examination = asyncio.create_task(self.check(is_suspect=True))

    async def check(self, *, is_suspect: bool = False) -> None:
        """Connect to the database that exists now, which is a new one if it was lost or, where it
        ``is_suspect``, damaged. To be called every few seconds.
        """
        if self._monitor is None:
            return
        try:
            if await self._monitor.check(is_suspect=is_suspect):
                await self._on_replaced()
        except RecoveryFailed as error:
            self.report(error)

    async def close(self) -> None:
        """Cancel a running examination."""
        if self._examination is not None:
            self._examination.cancel()
            await asyncio.wait({self._examination})
