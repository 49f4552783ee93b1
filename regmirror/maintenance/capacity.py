"""Capacity: space for a blob is reserved before the first byte of its download is written.

The store's usage is what the database counts plus every blob in flight, by its whole size as soon as
that is known. If the usage exceeds ``max_size``, or would leave less than ``min_free`` on the file
system, the least recently pulled blobs are evicted. If that is not enough, the blob is not stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from regmirror.blobs.base import InsufficientSpace
from regmirror.blobs.staging import Staging
from regmirror.maintenance.disk import Disk
from regmirror.maintenance.eviction import (
    Deficit,
    Plan,
    free_space_deficit,
    larger,
    plan_eviction,
    quota_deficit,
)
from regmirror.maintenance.gc import GcSummary, Report, ignore
from regmirror.maintenance.news import News
from regmirror.maintenance.remover import Remover
from regmirror.metadata.gc import GcQueries, Removal
from regmirror.metadata.local_index import LocalIndex
from regmirror.metadata.pins import Pinned, Pins
from regmirror.metadata.records import Candidate
from regmirror.oci.names import Digest

THREADS: Final = 2  # for measuring, apart from the threads that read and sync files
PAGE: Final = 500  # candidates in one query
TAG_GRACE: Final = 86_400.0  # seconds that a tag stays after blobs with the same last pull were evicted


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes: at most ``max_size`` in the store, at least ``min_free`` on its file system; 0 is no limit."""

    max_size: int
    min_free: int


class Capacity:
    """Keeps a store within ``limits``, which may be replaced at any time.

    ``flush_pulls`` writes the times of last pull that are still in memory.
    """

    def __init__(
        self,
        *,
        limits: Limits,
        disk: Disk,
        staging: Staging,
        metadata: LocalIndex,
        gc_queries: GcQueries,
        pins: Pins,
        remover: Remover,
        news: News,
        flush_pulls: Callable[[], Awaitable[None]],
        is_dry: bool = False,
    ) -> None:
        self.limits, self._is_dry = limits, is_dry
        self._disk, self._staging, self._metadata = disk, staging, metadata
        self._gc_queries, self._pins, self._remover = gc_queries, pins, remover
        self._news, self._flush_pulls = news, flush_pulls
        self._threads = ThreadPoolExecutor(THREADS, "capacity")
        self._evicting = asyncio.Lock()  # only downloads that have to evict wait for it

    async def reserve(self, digest: Digest, size: int | None) -> None:
        """Evict until there is space for a blob of ``size`` bytes; raises InsufficientSpace.

        The blob's state file must have the size already: other processes count what is in staging,
        so two of them never reserve the same bytes.
        """
        if not self.limits.max_size and not self.limits.min_free:
            return
        deficit = await self._find_deficit(digest, size or 0)
        if not deficit.required:
            return
        async with self._evicting:
            deficit = await self._find_deficit(digest, size or 0)
            if deficit.required and deficit.is_possible:
                await self.evict(deficit)
                deficit = await self._find_deficit(digest, size or 0)
        if deficit.required:
            raise self._insufficient_space(size)

    async def enforce(self) -> GcSummary:
        """Evict as much as possible of what exceeds the limits now."""
        async with self._evicting:
            return await self.evict(await self.find_excess())

    async def find_excess(self) -> Deficit:
        """The bytes over the limits now. None are required: each freed byte helps."""
        deficit = await self._find_deficit(None, 0)
        return Deficit(0, deficit.wanted)

    async def evict(self, deficit: Deficit, report: Report = ignore) -> GcSummary:
        """Evict for ``deficit``, as far as possible; blobs that are being read stay."""
        summary, after = GcSummary(), None
        await self._flush_pulls()
        orphaned = await asyncio.to_thread(self._staging.remove_orphans, deficit.wanted, is_dry=self._is_dry)
        for digest, size in orphaned:
            summary.add(Removal(digest, size, "left by an interrupted download"), report)
        while True:
            required, wanted = deficit.required - summary.bytes, deficit.wanted - summary.bytes
            plan, pinned = await self._plan(Deficit(max(0, required), max(0, wanted)), after)
            if not plan.evicted:
                return summary
            after = plan.evicted[-1]
            digests = [item.digest for item in plan.evicted if not item.repository_id]
            manifests = [item for item in plan.evicted if item.repository_id]
            summary.checked += len(plan.evicted)
            removed = await self._remover.remove(digests, "evicted", pulled_until=after.pulled_at)
            for digest, size in removed.gone:
                summary.add(Removal(digest, size, "least recently pulled"), report)
            evicted = await self._gc_queries.evict_manifests(manifests, after.pulled_at)
            for removal in evicted:
                summary.add(removal, report)
            if evicted and not self._is_dry:
                self._news.publish()
            await self._gc_queries.delete_old_tags(after.pulled_at - TAG_GRACE, pinned.tags, PAGE)

    async def used(self) -> int:
        """Bytes of stored blobs and manifests."""
        return await self._metadata.stored_bytes()

    async def _plan(self, deficit: Deficit, after: Candidate | None) -> tuple[Plan, Pinned]:
        """Plan an eviction of content that was pulled later than ``after``."""
        pinned = await self._pins.find_pinned()
        pinned_digests = {digest for _, digest in pinned.manifests}
        candidates: list[Candidate] = []
        free = 0
        while deficit.is_possible and free < deficit.wanted:
            page = await self._gc_queries.least_recently_pulled(after, PAGE)
            if not page:
                break
            after = page[-1]
            page = [_with_freed_size(item, pinned_digests) for item in page if not _is_pinned(item, pinned)]
            free += sum(item.size for item in page if item.digest not in pinned.blobs)
            candidates += page
        return plan_eviction(candidates, pinned.blobs, deficit), pinned

    async def _find_deficit(self, digest: Digest | None, size: int) -> Deficit:
        loop = asyncio.get_running_loop()
        usage = await loop.run_in_executor(self._threads, self._disk.usage)
        staged = sum(item.size for name, item in usage.staged.items() if name != digest)
        to_come = sum(item.to_come for item in usage.staged.values())
        free = free_space_deficit(usage.free, to_come, self.limits.min_free)
        try:
            quota = quota_deficit(await self.used() + staged, size, self.limits.max_size)
        except SQLAlchemyError:
            return free  # without the database only the file system's limit can be enforced
        return larger(quota, free)

    def _insufficient_space(self, size: int | None) -> InsufficientSpace:
        if self.limits.max_size and (size or 0) > self.limits.max_size:
            return InsufficientSpace("quota", f"its {size} bytes exceed storage.max_size")
        if free_space_deficit(self._disk.free(), size or 0, self.limits.min_free).required:
            return InsufficientSpace(
                "disk", "less than storage.min_free would be left, and nothing can be evicted"
            )
        return InsufficientSpace("quota", "storage.max_size is reached, and nothing can be evicted")


def _is_pinned(item: Candidate, pinned: Pinned) -> bool:
    return (item.repository_id, str(item.digest)) in pinned.manifests


def _with_freed_size(item: Candidate, pinned_digests: set[str]) -> Candidate:
    """The candidate with the bytes that it frees: none for a manifest that is pinned elsewhere."""
    stays = bool(item.repository_id) and str(item.digest) in pinned_digests
    return replace(item, size=0) if stays else item
