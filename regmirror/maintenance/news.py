"""Invalidation of in-memory caches: a process that removed content informs all servers of the store."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Final, Protocol

from regmirror.files import create

POLL: Final = 0.1  # seconds


class News(Protocol):
    """Changes of a store that its servers cannot see in their own memory."""

    def publish(self) -> None:
        """Inform every follower, in every process, that content was removed."""
        ...

    def follow(self, on_change: Callable[[], None]) -> AbstractAsyncContextManager[None]:
        """Call ``on_change`` after each publication, until the block ends.

        Publications in quick succession may cause one call. ``on_change`` must not raise.
        """
        ...


class InvalidationMarker:
    """News on one machine: the modification time of a file below ``root``, which followers poll."""

    def __init__(self, root: Path) -> None:
        self._path = root / "notice"
        self._seen = self._stamp()

    def publish(self) -> None:
        os.close(create(self._path, os.O_RDONLY))
        try:
            os.utime(self._path)
        except PermissionError:  # an older version created it as another user: replace it
            new = self._path.with_name(f".notice-{os.getpid()}")
            new.unlink(missing_ok=True)
            os.close(create(new, os.O_RDONLY))
            new.replace(self._path)

    @asynccontextmanager
    async def follow(self, on_change: Callable[[], None]) -> AsyncIterator[None]:
        task = asyncio.create_task(self._poll(on_change))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    def has_changed(self) -> bool:
        """Whether there was a publication since the last call, or since this object was made."""
        before, self._seen = self._seen, self._stamp()
        return before != self._seen

    async def _poll(self, on_change: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(POLL)
            if self.has_changed():
                on_change()

    def _stamp(self) -> tuple[int, int]:
        try:
            status = self._path.stat()
        except OSError:
            return 0, 0
        return status.st_ino, status.st_mtime_ns
