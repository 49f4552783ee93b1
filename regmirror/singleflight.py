"""Single-flight: concurrent calls with the same key share one task.

The task does not belong to its first caller: cancelling a waiter affects neither the task nor the
other waiters, and an exception is raised in every waiter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


class SingleFlight(Generic[K, T]):
    """Tasks in flight by key."""

    def __init__(self) -> None:
        self._tasks: dict[K, asyncio.Task[T]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, key: K) -> bool:
        return key in self._tasks

    def __iter__(self) -> Iterator[K]:
        return iter(self._tasks)

    def start(self, key: K, work: Callable[[], Awaitable[T]]) -> asyncio.Task[T]:
        """The task in flight for ``key``, else a new one that runs ``work``."""
        task = self._tasks.get(key)
        if task is None:
            task = asyncio.ensure_future(_call(work))
            self._tasks[key] = task
            task.add_done_callback(lambda done: self._finish(key, done))
        return task

    async def do(self, key: K, work: Callable[[], Awaitable[T]]) -> T:
        """The result of the task for ``key``, which runs ``work`` if none is in flight."""
        return await asyncio.shield(self.start(key, work))

    async def close(self) -> None:
        """Cancel every task and wait until it has ended."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _finish(self, key: K, task: asyncio.Task[T]) -> None:
        self._tasks.pop(key, None)
        if not task.cancelled():
            task.exception()  # retrieved, so that a failure without waiters is not logged by the event loop


async def _call(work: Callable[[], Awaitable[T]]) -> T:
    return await work()
