"""Taking blobs out of the store: the row first, the file after it, and never what is being read.

A blob is locked before its row goes, so that a reader who opened it in time keeps it. Between row
and file it stands in the database's ``removals``: should the process be killed there, the next
collection removes the file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

from regmirror.metadata.gc import GcQueries, Reason
from regmirror.oci.names import Digest
from regmirror.telemetry.events import BlobRemoved, Emit

BATCH: Final = 200  # blobs that are locked at the same time


class Removable(Protocol):
    """A blob that nobody reads and nobody can begin to read until ``close``."""

    size: int

    def unlink(self) -> None: ...
    def close(self) -> None: ...


#: Take away the rows of those that may go: digest and size of each.
TakeRows = Callable[[list[Digest]], Awaitable[list[tuple[Digest, int]]]]


class Store(Protocol):
    def lock_for_removal(self, digest: Digest) -> Removable | None: ...
    def exists(self, digest: Digest) -> bool: ...


@dataclass
class Removed:
    """Digest and size of what has gone; what was being read, and stays."""

    gone: list[tuple[Digest, int]] = field(default_factory=list)
    busy: list[Digest] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.gone)


class Remover:
    """Removes blobs of ``store`` and their rows."""

    def __init__(self, curation: GcQueries, store: Store, emit: Emit) -> None:
        self._curation, self._store, self._emit = curation, store, emit

    async def remove(
        self,
        digests: Collection[Digest],
        reason: Reason,
        *,
        unless_named: bool = False,
        pulled_until: float | None = None,
    ) -> Removed:
        """Remove those of ``digests`` that may go; see ``GcQueries.remove_blobs``."""
        removed = Removed()
        wanted = list(digests)
        take_rows = partial(
            self._curation.remove_blobs, reason=reason, unless_named=unless_named, pulled_until=pulled_until
        )
        for start in range(0, len(wanted), BATCH):
            gone = await self._remove_batch(wanted[start : start + BATCH], take_rows, removed)
            for digest, size in gone:
                self._emit(BlobRemoved(digest, size, reason))
            removed.gone += gone
        return removed

    async def finish_earlier(self) -> None:
        """Remove the files that a killed process left without a row."""
        while left := await self._curation.unfinished():
            await asyncio.to_thread(self._unlink, left)
            await self._curation.finish(left)

    async def _remove_batch(
        self, batch: list[Digest], take_rows: TakeRows, removed: Removed
    ) -> list[tuple[Digest, int]]:
        with ExitStack() as locks:
            locked, busy = await asyncio.to_thread(self._lock, batch, locks)
            removed.busy += busy
            free = [digest for digest in batch if digest not in {*busy}]
            gone = await take_rows(free)
            await asyncio.to_thread(_unlink, [locked[digest] for digest, _ in gone if digest in locked])
        await self._curation.finish([digest for digest, _ in gone])
        return gone

    def _lock(self, batch: list[Digest], locks: ExitStack) -> tuple[dict[Digest, Removable], list[Digest]]:
        locked, busy = {}, []
        for digest in batch:
            removable = self._store.lock_for_removal(digest)
            if removable is not None:
                locks.callback(removable.close)
                locked[digest] = removable
            elif self._store.exists(digest):
                busy.append(digest)
        return locked, busy

    def _unlink(self, digests: list[Digest]) -> None:
        with ExitStack() as locks:
            locked, _ = self._lock(digests, locks)
            _unlink([*locked.values()])


def _unlink(blobs: list[Removable]) -> None:
    for blob in blobs:
        blob.unlink()
