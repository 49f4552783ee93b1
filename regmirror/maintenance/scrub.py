"""Verifying every stored byte at a bounded rate, and mending what is rotten.

A scrub goes through blobs in the order of their digests and writes down how far it has come, so
that it goes on there after a restart. A blob that is not what its name says is put aside, its
row goes, and it is fetched anew from an upstream that has it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from regmirror.blobs.local import LocalBlobStore
from regmirror.errors import RegmirrorError
from regmirror.metadata.inventory import BlobRow, Chore, Inventory
from regmirror.oci.names import Digest, Hasher, Repository
from regmirror.telemetry.events import BlobRemoved, BlobRepaired, Emit, VerificationFailed

CHORE: Final = "scrub"
PAGE: Final = 50  # blobs between two notes of how far it has come
PIECE: Final = 1024 * 1024  # bytes read at once

RepairBlob = Callable[[Repository, Digest], Awaitable[None]]
Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Finding:
    """Content that was not what its name says, and whether it could be fetched anew."""

    digest: Digest
    size: int
    why: str
    is_healed: bool


@dataclass
class Scrubbed:
    """What a scrub has looked at and found."""

    checked: int = 0
    bytes: int = 0
    rotten: int = 0
    healed: int = 0


class Pacer:
    """Keeps reading at ``rate`` bytes a second; 0 is no limit."""

    def __init__(self, rate: float, clock: Callable[[], float], sleep: Sleep) -> None:
        self._rate, self._clock, self._sleep = rate, clock, sleep
        self._next = clock()

    async def spend(self, count: int) -> None:
        """Wait until ``count`` bytes more may have been read."""
        if self._rate <= 0:
            return
        now = self._clock()
        self._next = max(self._next, now) + count / self._rate
        if self._next > now:
            await self._sleep(self._next - now)


@dataclass(frozen=True)
class Scrubber:
    """``heal`` fetches a blob for a repository and stores it; raises if it cannot be had.

    ``is_noted``: a run goes on where the last one was broken off, and writes down how far it has
    come. Else it verifies everything, and leaves alone what another run has written down.
    ``on_drop`` is called when rows have gone, which workers may remember.
    """

    inventory: Inventory
    store: LocalBlobStore
    emit: Emit
    repair: RepairBlob
    rate: float
    now: Callable[[], float] = time.time
    clock: Callable[[], float] = time.monotonic
    sleep: Sleep = asyncio.sleep
    is_noted: bool = True
    on_drop: Callable[[], None] = lambda: None

    async def scrub(self, tell: Callable[[Finding], None]) -> Scrubbed:
        """Verify everything, or what is left of a run that was broken off."""
        scrubbed, pacer = Scrubbed(), Pacer(self.rate, self.clock, self.sleep)
        last = await self.inventory.find_chore(CHORE) if self.is_noted else Chore()
        cursor = last.cursor
        started_at = last.started_at if cursor else self.now()
        while page := await self.inventory.blobs_after(cursor, PAGE):
            for row in page:
                await self._verify(row, pacer, scrubbed, tell)
            cursor = page[-1].digest
            await self._note(Chore(started_at, last.ended_at, cursor))
        await self._verify_manifests(scrubbed, tell)
        await self._note(Chore(started_at, self.now()))
        return scrubbed

    async def _note(self, chore: Chore) -> None:
        if self.is_noted:
            await self.inventory.save_chore(CHORE, chore)

    async def _verify(
        self, row: BlobRow, pacer: Pacer, scrubbed: Scrubbed, tell: Callable[[Finding], None]
    ) -> None:
        why = await self._put_aside(row, pacer)
        scrubbed.checked += 1
        scrubbed.bytes += row.size
        if why is None:
            return
        await self.inventory.drop_rows([row.digest])
        self.on_drop()
        self.emit(VerificationFailed("", "blob", row.digest, "store"))
        self.emit(BlobRemoved(row.digest, row.size, "corrupt"))
        is_healed = await self._heal(row.digest)
        scrubbed.rotten += 1
        scrubbed.healed += is_healed
        tell(Finding(row.digest, row.size, why, is_healed))

    async def _put_aside(self, row: BlobRow, pacer: Pacer) -> str | None:
        """What was wrong with the blob; None if nothing is, or if it was replaced meanwhile."""
        try:
            descriptor = os.open(self.store.path(row.digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            known = await self.inventory.known([row.digest])
            return "its file is missing" if known and not self.store.exists(row.digest) else None
        except OSError as error:
            await self.store.quarantine(row.digest)
            return f"it cannot be opened: {error.strerror}"
        try:
            why = await self._find_fault(row, descriptor, pacer)
            if why is None or not await self.store.quarantine(row.digest, descriptor):
                return None
            return why
        finally:
            os.close(descriptor)

    async def _find_fault(self, row: BlobRow, descriptor: int, pacer: Pacer) -> str | None:
        """What is wrong with the open file; None if nothing is."""
        try:
            size = os.fstat(descriptor).st_size
            if size != row.size:
                return f"it has {size} bytes instead of {row.size}"
            hasher = row.digest.hasher()
            for start in range(0, size, PIECE):
                await pacer.spend(await asyncio.to_thread(_hash_piece, descriptor, hasher, start))
        except OSError as error:
            return f"it cannot be read: {error.strerror}"
        return None if hasher.hexdigest() == row.digest.encoded else "its bytes have changed"

    async def _heal(self, digest: Digest) -> bool:
        for repository in await self.inventory.find_sources(digest):
            try:
                await self.repair(repository, digest)
            except (RegmirrorError, OSError, KeyError):  # the next source may have it
                continue
            if not self.store.exists(digest):  # it came, and could not be kept
                continue
            self.emit(BlobRepaired(repository.upstream, digest))
            return True
        return False

    async def _verify_manifests(self, scrubbed: Scrubbed, tell: Callable[[Finding], None]) -> None:
        last = ""
        while page := await self.inventory.manifests_after(last, PAGE):
            for text, payload in page:
                digest = Digest(text)
                scrubbed.checked += 1
                scrubbed.bytes += len(payload)
                if Digest.of(payload, digest.algorithm) != digest:
                    await self.inventory.drop_manifest(text)
                    self.on_drop()
                    self.emit(VerificationFailed("", "manifest", digest, "store"))
                    scrubbed.rotten += 1
                    tell(Finding(digest, len(payload), "its bytes have changed", is_healed=False))
            last = page[-1][0]


def _hash_piece(descriptor: int, hasher: Hasher, start: int) -> int:
    """Read and hash one piece, and leave the page cache to those who pull."""
    piece = os.pread(descriptor, PIECE, start)
    hasher.update(piece)
    os.posix_fadvise(descriptor, start, len(piece), os.POSIX_FADV_DONTNEED)
    return len(piece)
