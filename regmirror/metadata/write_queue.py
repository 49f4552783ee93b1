"""Writes to the database for which no pull waits long.

Normally a write has ended when its caller goes on. One that is late, because another process holds
the lock or the disk is slow, goes on by itself; while any is late, later ones wait their turn
without their callers. Their number is bounded: what comes beyond it is dropped and told.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final

from sqlalchemy.exc import SQLAlchemyError

PATIENCE: Final = 0.5  # seconds a caller waits for its write
PENDING_MAX: Final = 200  # writes that wait while one is late
PENDING_BYTES: Final = 32 * 1024 * 1024  # what they hold together: each may have a manifest of 8 MiB

Transaction = Coroutine[Any, Any, object]


class WriteQueue:
    """The writes of one process, in order; ``tell`` is called with each failure."""

    def __init__(
        self, tell: Callable[[Exception], None], *, patience: float = PATIENCE, limit: int = PENDING_MAX
    ) -> None:
        self._tell, self._patience, self._limit = tell, patience, limit
        self._running: set[asyncio.Task[None]] = set()
        self._late: set[asyncio.Task[None]] = set()
        self._pending: deque[tuple[Transaction, int]] = deque()
        self._pending_bytes = 0

    @property
    def is_late(self) -> bool:
        """Whether the database does not keep up at the moment."""
        return bool(self._late or self._pending)

    async def do(self, transaction: Transaction, size: int = 0) -> None:
        """Run the transaction, and return when it has ended or is late; never raises its errors.

        ``size`` is about how many bytes it holds in memory.
        """
        if self.is_late:
            self._queue(transaction, size)
            return
        task = self._start(transaction)
        done, _ = await asyncio.wait({task}, timeout=self._patience)
        if not done:
            self._late.add(task)

    async def close(self) -> None:
        """Drop what has not begun, and give what is running a moment to end."""
        while self._pending:
            self._drop(self._take_pending(), "the server is stopping")
        if self._running:
            await asyncio.wait(self._running, timeout=self._patience)

    def _queue(self, transaction: Transaction, size: int) -> None:
        if len(self._pending) < self._limit and self._pending_bytes + size <= PENDING_BYTES:
            self._pending.append((transaction, size))
            self._pending_bytes += size
        else:
            self._drop(transaction, f"{len(self._pending)} writes are waiting already")

    def _take_pending(self) -> Transaction:
        transaction, size = self._pending.popleft()
        self._pending_bytes -= size
        return transaction

    def _drop(self, transaction: Transaction, why: str) -> None:
        transaction.close()
        self._tell(TimeoutError(f"not written: {why}"))

    def _start(self, transaction: Transaction) -> asyncio.Task[None]:
        task = asyncio.create_task(self._try(transaction))
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def _try(self, transaction: Transaction) -> None:
        try:
            await transaction
        except SQLAlchemyError as error:
            self._tell(error)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """The next one begins when the last late one has ended, so that the order is kept."""
        self._running.discard(task)
        self._late.discard(task)
        if self._pending and not self._late and not task.cancelled():
            self._late.add(self._start(self._take_pending()))
