"""Room for what arrives: space is reserved before a download's first byte is written.

What a store uses is what the database counts plus what is in flight, each blob by its whole size
from the moment that is known. When that exceeds ``max_size``, or leaves less than ``min_free``
of the file system, the least recently pulled blobs are evicted; if that is not enough, the blob
is passed on without being stored.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from regmirror.blobs.base import InsufficientSpace
from regmirror.blobs.staging import Reservation, Staging
from regmirror.maintenance.eviction import (
    Deficit,
    Plan,
    larger,
    need_for_free_space,
    need_for_quota,
    plan_eviction,
)
from regmirror.maintenance.gc import GcSummary, Report
from regmirror.maintenance.remover import Remover
from regmirror.metadata.gc import GcQueries, Removal
from regmirror.metadata.pins import Pinned, Pins
from regmirror.metadata.records import Candidate
from regmirror.metadata.store import MetadataStore
from regmirror.oci.names import Digest

THREADS: Final = 2  # that look how much room there is
PAGE: Final = 500  # candidates read at once
TAG_SLACK: Final = 86_400.0  # seconds a tag outlives the blobs that were pulled when it was


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes: ``max_size`` of the store, ``min_free`` of its file system; 0 is no limit."""

    max_size: int
    min_free: int


@dataclass(frozen=True)
class Keepers:
    """What evicting takes: rows, pins, files, and the writing of the last pulls."""

    metadata: MetadataStore
    curation: GcQueries
    pins: Pins
    remover: Remover
    flush: Callable[[], Awaitable[None]]
    notify: Callable[[], None]  # workers, which remember manifests


class Capacity:
    """The space below ``root``; ``limits`` may be replaced while it is used."""

    def __init__(self, root: Path, limits: Limits, keepers: Keepers, *, is_dry: bool = False) -> None:
        self.limits, self._is_dry = limits, is_dry
        self._root, self._keepers = root, keepers
        self._staging = Staging(root / "staging")
        self._threads = ThreadPoolExecutor(THREADS, "room")  # no download waits for reads or syncs
        self._evicting = asyncio.Lock()  # held only by downloads that find no room

    async def reserve(self, digest: Digest, size: int | None) -> None:
        """Make room for a blob whose note in staging tells its size already; raises InsufficientSpace.

        Other processes count what stands in staging, so that two of them never give away the
        same bytes.
        """
        if not self.limits.max_size and not self.limits.min_free:
            return
        need = await self._need(digest, size or 0)
        if not need.required:
            return
        async with self._evicting:
            need = await self._need(digest, size or 0)
            if need.required and need.is_possible:
                await self.evict(need)
                need = await self._need(digest, size or 0)
        if need.required:
            raise self._no_room(size)

    async def keep(self) -> GcSummary:
        """Evict if the store is over its limits now, whatever the reason; as much as can go."""
        async with self._evicting:
            return await self.evict(await self.find_excess())

    async def find_excess(self) -> Deficit:
        """What has to go for the limits to be kept; whatever can go helps."""
        need = await self._need(None, 0)
        return Deficit(0, need.wanted)

    async def _plan(self, need: Deficit, after: Candidate | None) -> tuple[Plan, Pinned]:
        """What has to go, from ``after`` on in the order of last pulls."""
        pinned = await self._keepers.pins.find_pinned()
        stay = {digest for _, digest in pinned.manifests}  # in one repository at least
        candidates: list[Candidate] = []
        free = 0
        while need.is_possible and free < need.wanted:
            page = await self._keepers.curation.least_recently_pulled(after, PAGE)
            if not page:
                break
            after = page[-1]
            page = [_freed(item, stay) for item in page if not _is_pinned(item, pinned)]
            free += sum(item.size for item in page if item.digest not in pinned.blobs)
            candidates += page
        return plan_eviction(candidates, pinned.blobs, need), pinned

    async def evict(self, need: Deficit, tell: Report = lambda removal: None) -> GcSummary:
        """Evict what ``need`` asks for, as far as possible; what is being read stays."""
        summary, after = GcSummary(), None
        await self._keepers.flush()
        left = await asyncio.to_thread(self._staging.remove_leftovers, need.wanted, is_dry=self._is_dry)
        for digest, size in left:
            _add(summary, Removal(digest, size, "left over by a download that was broken off"), tell)
        while True:
            rest = Deficit(max(0, need.required - summary.bytes), max(0, need.wanted - summary.bytes))
            plan, pinned = await self._plan(rest, after)
            if not plan.evicted:
                return summary
            after = plan.evicted[-1]
            digests = [item.digest for item in plan.evicted if not item.repository_id]
            manifests = [item for item in plan.evicted if item.repository_id]
            summary.checked += len(plan.evicted)
            removed = await self._keepers.remover.remove(digests, "evicted", pulled_until=after.pulled_at)
            for digest, size in removed.gone:
                _add(summary, Removal(digest, size, "least recently pulled"), tell)
            evicted = await self._keepers.curation.evict_manifests(manifests, after.pulled_at)
            for removal in evicted:
                _add(summary, removal, tell)
            if evicted and not self._is_dry:
                self._keepers.notify()
            await self._keepers.curation.forget_tags(after.pulled_at - TAG_SLACK, pinned.tags, PAGE)

    async def used(self) -> int:
        """Bytes of stored blobs and manifests."""
        return await self._keepers.metadata.stored_bytes()

    async def _need(self, digest: Digest | None, size: int) -> Deficit:
        arriving, left = await asyncio.get_running_loop().run_in_executor(self._threads, self._measure)
        whole = sum(item.size for name, item in arriving.items() if name != digest)
        to_come = sum(item.to_come for item in arriving.values())
        free = need_for_free_space(left, to_come, self.limits.min_free)
        try:
            quota = need_for_quota(await self.used() + whole, size, self.limits.max_size)
        except SQLAlchemyError:
            return free  # nobody knows how much there is; the file system's limit still holds
        return larger(quota, free)

    def _measure(self) -> tuple[dict[Digest, Reservation], int]:
        return self._staging.reservations(), _free(self._root)

    def _no_room(self, size: int | None) -> InsufficientSpace:
        if self.limits.max_size and (size or 0) > self.limits.max_size:
            return InsufficientSpace("quota", f"its {size} bytes are more than storage.max_size")
        if need_for_free_space(_free(self._root), size or 0, self.limits.min_free).required:
            return InsufficientSpace(
                "disk", "less than storage.min_free would be left, and nothing can be evicted"
            )
        return InsufficientSpace("quota", "storage.max_size is reached, and nothing can be evicted")


def _add(summary: GcSummary, removal: Removal, tell: Report) -> None:
    summary.add(removal)
    tell(removal)


def _free(root: Path) -> int:
    status = os.statvfs(root)
    return status.f_bavail * status.f_frsize


def _is_pinned(item: Candidate, pinned: Pinned) -> bool:
    return (item.repository_id, str(item.digest)) in pinned.manifests


def _freed(item: Candidate, stay: set[str]) -> Candidate:
    """A manifest that another repository keeps frees nothing."""
    is_kept = bool(item.repository_id) and str(item.digest) in stay
    return replace(item, size=0) if is_kept else item
