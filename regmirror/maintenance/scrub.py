"""Verification of every stored byte at a bounded rate, and repair of corrupt blobs.

A scrub reads blobs in the order of their digests and records its position, from which it continues
after a restart. A blob that does not match its digest is quarantined, its row is deleted, and it is
downloaded again from an upstream that has it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from regmirror.blobs.base import BlobStore, Verifiable
from regmirror.errors import RegmirrorError
from regmirror.metadata.inventory import BlobRow, Inventory, MaintenanceRun
from regmirror.oci.names import Digest, Hasher, Repository
from regmirror.telemetry.events import BlobRemoved, BlobRepaired, Emit, VerificationFailed

TASK: Final = "scrub"
PAGE: Final = 50  # blobs between two records of the position
PIECE: Final = 1024 * 1024  # bytes of one read

RepairBlob = Callable[[Repository, Digest], Awaitable[None]]
Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Finding:
    """Content that does not match its digest, and whether a new download has replaced it."""

    digest: Digest
    size: int
    why: str
    is_repaired: bool


@dataclass
class ScrubSummary:
    """Blobs and manifests checked, their bytes, and how many were corrupt and repaired."""

    checked: int = 0
    bytes: int = 0
    corrupt: int = 0
    repaired: int = 0


class Pacer:
    """Limits reading to ``rate`` bytes a second; 0 is no limit."""

    def __init__(self, rate: float, clock: Callable[[], float], sleep: Sleep) -> None:
        self._rate, self._clock, self._sleep = rate, clock, sleep
        self._next = clock()

    async def spend(self, count: int) -> None:
        """Wait until the rate allows ``count`` more bytes."""
        if self._rate <= 0:
            return
        now = self._clock()
        self._next = max(self._next, now) + count / self._rate
        if self._next > now:
            await self._sleep(self._next - now)


@dataclass(frozen=True, kw_only=True)
class Scrubber:
    """Verifies ``store`` at ``rate`` bytes a second.

    ``repair`` downloads and stores a blob for a repository, or raises. A scheduled run (``is_resumable``)
    continues from the recorded position and records its own; a run on command verifies everything and
    leaves the record alone. ``on_drop`` is called after rows are deleted, to invalidate caches.
    """

    inventory: Inventory
    store: BlobStore
    emit: Emit
    repair: RepairBlob
    rate: float
    now: Callable[[], float] = time.time
    clock: Callable[[], float] = time.monotonic
    sleep: Sleep = asyncio.sleep
    is_resumable: bool = True
    on_drop: Callable[[], None] = lambda: None

    async def scrub(self, report: Callable[[Finding], None]) -> ScrubSummary:
        """Verify everything, or what an interrupted run has left, and report every corrupt blob."""
        summary, pacer = ScrubSummary(), Pacer(self.rate, self.clock, self.sleep)
        last = await self.inventory.get_run(TASK) if self.is_resumable else MaintenanceRun()
        cursor = last.cursor
        started_at = last.started_at if cursor else self.now()
        while page := await self.inventory.blobs_after(cursor, PAGE):
            for row in page:
                await self._verify(row, pacer, summary, report)
            cursor = page[-1].digest
            await self._record(MaintenanceRun(started_at, last.ended_at, cursor))
        await self._verify_manifests(summary, report)
        await self._record(MaintenanceRun(started_at, self.now()))
        return summary

    async def _record(self, run: MaintenanceRun) -> None:
        if self.is_resumable:
            await self.inventory.save_run(TASK, run)

    async def _verify(
        self, row: BlobRow, pacer: Pacer, summary: ScrubSummary, report: Callable[[Finding], None]
    ) -> None:
        why = await self._quarantine_corrupt(row, pacer)
        summary.checked += 1
        summary.bytes += row.size
        if why is None:
            return
        await self.inventory.delete_blobs([row.digest])
        self.on_drop()
        self.emit(VerificationFailed("", "blob", row.digest, "store"))
        self.emit(BlobRemoved(row.digest, row.size, "corrupt"))
        is_repaired = await self._repair(row.digest)
        summary.corrupt += 1
        summary.repaired += is_repaired
        report(Finding(row.digest, row.size, why, is_repaired))

    async def _quarantine_corrupt(self, row: BlobRow, pacer: Pacer) -> str | None:
        """Why the blob was quarantined; None if it is intact, or was replaced meanwhile."""
        try:
            stored = self.store.open_for_verification(row.digest)
        except OSError as error:
            await self.store.quarantine(row.digest)
            return f"it cannot be opened: {error.strerror}"
        if stored is None:
            is_recorded = bool(await self.inventory.find_stored([row.digest]))
            return "its file is missing" if is_recorded and not self.store.exists(row.digest) else None
        try:
            why = await self._find_fault(row, stored, pacer)
            return why if why is not None and stored.quarantine() else None
        finally:
            stored.close()

    async def _find_fault(self, row: BlobRow, stored: Verifiable, pacer: Pacer) -> str | None:
        """Why the open file is corrupt; None if it matches its digest."""
        try:
            size = stored.size
            if size != row.size:
                return f"it has {size} bytes instead of {row.size}"
            hasher = row.digest.hasher()
            for start in range(0, size, PIECE):
                await pacer.spend(await asyncio.to_thread(_hash_piece, stored, hasher, start))
        except OSError as error:
            return f"it cannot be read: {error.strerror}"
        return None if hasher.hexdigest() == row.digest.encoded else "its bytes have changed"

    async def _repair(self, digest: Digest) -> bool:
        for repository in await self.inventory.find_sources(digest):
            try:
                await self.repair(repository, digest)
            except (RegmirrorError, OSError, KeyError):  # the next repository's upstream may have it
                continue
            if not self.store.exists(digest):  # downloaded, but not stored
                continue
            self.emit(BlobRepaired(repository.upstream, digest))
            return True
        return False

    async def _verify_manifests(self, summary: ScrubSummary, report: Callable[[Finding], None]) -> None:
        last = ""
        while page := await self.inventory.manifests_after(last, PAGE):
            for text, payload in page:
                digest = Digest(text)
                summary.checked += 1
                summary.bytes += len(payload)
                if Digest.of(payload, digest.algorithm) != digest:
                    await self.inventory.delete_manifest(text)
                    self.on_drop()
                    self.emit(VerificationFailed("", "manifest", digest, "store"))
                    summary.corrupt += 1
                    report(Finding(digest, len(payload), "its bytes have changed", is_repaired=False))
            last = page[-1][0]


def _hash_piece(stored: Verifiable, hasher: Hasher, start: int) -> int:
    """Read and hash one piece."""
    piece = stored.read(start, PIECE)
    hasher.update(piece)
    return len(piece)
