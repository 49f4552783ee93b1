"""Reads and writes of the database with deadlines, so that a slow database never delays a pull.

A read that fails or is late returns None, which means unknown and never absent: the pull continues
with its upstream. Where only a 404 could follow, the request answers 503 instead, because the
content may be stored; ``has_failed_read`` says so.

A write that fails is dropped. A late write continues in the background, and those that follow it
are queued without their callers.

In both cases the failure is passed to ``report``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from sqlalchemy.exc import SQLAlchemyError

T = TypeVar("T")
READ_DEADLINE: Final = 2.0  # seconds a caller waits for a read
PING_DEADLINE: Final = 0.25  # seconds in which a working database answers the smallest query
READS_MAX: Final = 64  # running reads, late ones included
WRITE_DEADLINE: Final = 0.5  # seconds a caller waits for its write
QUEUED_MAX: Final = 200  # writes queued behind a late one
QUEUED_BYTES: Final = 32 * 1024 * 1024  # of all queued writes: each may contain a manifest of 4.5 MB

Report = Callable[[Exception], None]
Transaction = Coroutine[Any, Any, object]


@dataclass(slots=True)
class ReadOutcome:
    """Whether any read of a request has failed or was late."""

    has_failed: bool = False


_outcome: ContextVar[ReadOutcome | None] = ContextVar("outcome", default=None)


@contextmanager
def tracking_reads() -> Iterator[ReadOutcome]:
    """Track the reads of one request, including those of tasks that it starts."""
    outcome = ReadOutcome()
    token = _outcome.set(outcome)
    try:
        yield outcome
    finally:
        _outcome.reset(token)


def has_failed_read() -> bool:
    """Whether a read of the current request has failed or was late."""
    outcome = _outcome.get()
    return outcome is not None and outcome.has_failed


class BoundedReads:
    """The reads of one process; ``ping`` is the smallest query.

    One late read delays no other. While the database does not answer the ping either, new reads
    fail at once: otherwise a pull would wait for each of its reads.
    """

    def __init__(self, report: Report, ping: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._report, self._ping = report, ping
        self._slots = asyncio.Semaphore(READS_MAX)
        self._running: set[asyncio.Future[Any]] = set()  # each owns a slot
        self._pinging: asyncio.Task[None] | None = None
        self._pinged_at = 0.0

    def __len__(self) -> int:
        return len(self._running)

    @property
    def is_stuck(self) -> bool:
        """Whether a ping has been unanswered for longer than ``PING_DEADLINE``."""
        return (
            self._pinging is not None and asyncio.get_running_loop().time() - self._pinged_at >= PING_DEADLINE
        )

    async def find(self, query: Coroutine[Any, Any, T | None]) -> T | None:
        """Return the result of ``query``, or None if it failed or is late (see ``has_failed_read``)."""
        try:
            if await self._may_start(query):
                task = self._start(query)
                done, _ = await asyncio.wait({task}, timeout=READ_DEADLINE)
                if done:
                    return task.result()
                self._on_late_read()
        except SQLAlchemyError as error:
            self._report(error)
        if (outcome := _outcome.get()) is not None:
            outcome.has_failed = True
        return None

    async def close(self) -> None:
        """Cancel the ping; running reads end by themselves."""
        if self._pinging is not None:
            self._pinging.cancel()
            await asyncio.wait({self._pinging})

    async def _may_start(self, query: Coroutine[Any, Any, object]) -> bool:
        """Acquire a slot before the deadline; close ``query`` if there is none."""
        may_start = False
        try:
            if not self.is_stuck:
                async with asyncio.timeout(READ_DEADLINE):
                    may_start = await self._slots.acquire()
        except TimeoutError:
            self._on_late_read()
        finally:
            if not may_start:
                query.close()
        return may_start

    def _start(self, query: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.ensure_future(query)
        self._running.add(task)
        task.add_done_callback(self._on_end)
        return task

    def _on_end(self, task: asyncio.Future[Any]) -> None:
        self._running.discard(task)
        self._slots.release()
        if not task.cancelled():
            task.exception()  # retrieved here, since the caller may have left

    def _on_late_read(self) -> None:
        self._report(TimeoutError("the database does not answer"))
        if self._pinging is None:
            self._pinged_at = asyncio.get_running_loop().time()
            self._pinging = asyncio.create_task(self._ping_once())

    async def _ping_once(self) -> None:
        try:
            await self._ping()
        except SQLAlchemyError as error:
            self._report(error)
        finally:
            self._pinging = None


class WriteQueue:
    """The writes of one process, in order; ``deadline`` in seconds, ``limit`` in queued writes."""

    def __init__(self, report: Report, *, deadline: float = WRITE_DEADLINE, limit: int = QUEUED_MAX) -> None:
        self._report, self._deadline, self._limit = report, deadline, limit
        self._running: set[asyncio.Task[None]] = set()
        self._late: set[asyncio.Task[None]] = set()
        self._queued: deque[tuple[Transaction, int]] = deque()
        self._queued_bytes = 0

    @property
    def is_late(self) -> bool:
        """Whether a write is late or queued."""
        return bool(self._late or self._queued)

    async def write(self, transaction: Transaction, size: int = 0) -> None:
        """Run ``transaction`` and return when it has ended, is late or is queued.

        Its database errors are reported, never raised. ``size`` estimates the bytes that it keeps
        in memory.
        """
        if self.is_late:
            self._enqueue(transaction, size)
            return
        task = self._start(transaction)
        done, _ = await asyncio.wait({task}, timeout=self._deadline)
        if not done:
            self._late.add(task)

    async def close(self) -> None:
        """Drop the queue, and wait one deadline for running writes."""
        while self._queued:
            self._drop(self._pop(), "the server is stopping")
        if self._running:
            await asyncio.wait(self._running, timeout=self._deadline)

    def _enqueue(self, transaction: Transaction, size: int) -> None:
        if len(self._queued) < self._limit and self._queued_bytes + size <= QUEUED_BYTES:
            self._queued.append((transaction, size))
            self._queued_bytes += size
        else:
            self._drop(transaction, f"the queue is full with {len(self._queued)} writes")

    def _pop(self) -> Transaction:
        transaction, size = self._queued.popleft()
        self._queued_bytes -= size
        return transaction

    def _drop(self, transaction: Transaction, reason: str) -> None:
        transaction.close()
        self._report(TimeoutError(f"not written: {reason}"))

    def _start(self, transaction: Transaction) -> asyncio.Task[None]:
        task = asyncio.create_task(self._run(transaction))
        self._running.add(task)
        task.add_done_callback(self._on_end)
        return task

    async def _run(self, transaction: Transaction) -> None:
        try:
            await transaction
        except SQLAlchemyError as error:
            self._report(error)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        """Start the next queued write when no late one runs, which keeps them in order."""
        self._running.discard(task)
        self._late.discard(task)
        if self._queued and not self._late and not task.cancelled():
            self._late.add(self._start(self._pop()))
