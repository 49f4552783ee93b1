"""One call for many: those who ask for the same thing at the same time share one piece of work.

The work belongs to the process, not to whoever asked first: a waiter that is cancelled
disturbs neither the work nor the other waiters, and a failure reaches every one of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


class SingleFlight(Generic[K, T]):
    """Calls in flight by key."""

    def __init__(self) -> None:
        self._tasks: dict[K, asyncio.Task[T]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, key: K) -> bool:
        return key in self._tasks

    def __iter__(self) -> Iterator[K]:
        return iter(self._tasks)

    def start(self, key: K, work: Callable[[], Awaitable[T]]) -> asyncio.Task[T]:
        """The task for ``key``: the one in flight, else a new one that runs ``work``."""
        task = self._tasks.get(key)
        if task is None:
            task = asyncio.ensure_future(_call(work))
            self._tasks[key] = task
            task.add_done_callback(lambda done: self._finish(key, done))
        return task

    async def do(self, key: K, work: Callable[[], Awaitable[T]]) -> T:
        """The result of the call in flight for ``key``, starting ``work`` if there is none."""
        return await asyncio.shield(self.start(key, work))

    async def close(self) -> None:
        """Cancel what is in flight and wait until it has ended."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _finish(self, key: K, task: asyncio.Task[T]) -> None:
        self._tasks.pop(key, None)
        if not task.cancelled():
            task.exception()  # a failure nobody waits for any more is not an event loop error


async def _call(work: Callable[[], Awaitable[T]]) -> T:
    return await work()
