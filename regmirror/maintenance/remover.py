"""Removal of blobs: first the row, then the file, and never a blob that is being read.

A blob is locked before its row is deleted, so a reader that has opened it keeps it. Until its file is
deleted it has a row in ``removals``: if the process is killed in between, the next collection deletes
the file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

from regmirror.blobs.base import Removable
from regmirror.metadata.gc import GcQueries, Reason
from regmirror.oci.names import Digest
from regmirror.telemetry.events import BlobRemoved, Emit

BATCH: Final = 200  # blobs that are locked at the same time


#: Deletes the rows of blobs that may be removed; returns the digest and size of each.
DeleteRows = Callable[[list[Digest]], Awaitable[list[tuple[Digest, int]]]]


class LockableStore(Protocol):
    """A store whose blobs can be locked for removal; None if the blob is missing or being read."""

    def lock_for_removal(self, digest: Digest) -> Removable | None: ...
    def exists(self, digest: Digest) -> bool: ...


@dataclass
class Removed:
    """Digest and size of every removed blob; ``busy`` blobs were being read, and stay."""

    gone: list[tuple[Digest, int]] = field(default_factory=list)
    busy: list[Digest] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.gone)


class Remover:
    """Removes blobs of ``store`` and their rows, and emits an event for each."""

    def __init__(self, gc_queries: GcQueries, store: LockableStore, emit: Emit) -> None:
        self._gc_queries, self._store, self._emit = gc_queries, store, emit

    async def remove(
        self,
        digests: Collection[Digest],
        reason: Reason,
        *,
        unless_referenced: bool = False,
        pulled_until: float | None = None,
    ) -> Removed:
        """Remove those of ``digests`` that ``GcQueries.remove_blobs`` allows under the same conditions."""
        removed = Removed()
        digests = list(digests)
        delete_rows = partial(
            self._gc_queries.remove_blobs,
            reason=reason,
            unless_referenced=unless_referenced,
            pulled_until=pulled_until,
        )
        for start in range(0, len(digests), BATCH):
            gone = await self._remove_batch(digests[start : start + BATCH], delete_rows, removed)
            for digest, size in gone:
                self._emit(BlobRemoved(digest, size, reason))
            removed.gone += gone
        return removed

    async def finish_earlier(self) -> None:
        """Delete the files of removals that were interrupted after their row was deleted."""
        while pending := await self._gc_queries.list_pending_removals():
            await asyncio.to_thread(self._unlink, pending)
            await self._gc_queries.complete_removals(pending)

    async def _remove_batch(
        self, batch: list[Digest], delete_rows: DeleteRows, removed: Removed
    ) -> list[tuple[Digest, int]]:
        with ExitStack() as locks:
            locked, busy = await asyncio.to_thread(self._lock, batch, locks)
            removed.busy += busy
            free = [digest for digest in batch if digest not in {*busy}]
            gone = await delete_rows(free)
            await asyncio.to_thread(_unlink, [locked[digest] for digest, _ in gone if digest in locked])
        await self._gc_queries.complete_removals([digest for digest, _ in gone])
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
