"""Garbage collection of unreferenced content, while pulls continue.

A collection processes the due entries of the GC queue: first manifests that no tag, index or subject
references, and in turn what they referenced; then blobs that no manifest names. Its work is
proportional to what has changed; ``reconcile.py`` finds what the queue has missed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from regmirror.maintenance.remover import Remover
from regmirror.metadata.gc import PURGE, Cutoffs, GcQueries, Key, Reason, Removal
from regmirror.metadata.pins import Pins

BATCH: Final = 500  # queue entries in one transaction, for which pulls wait
Report = Callable[[Removal], None]


def ignore(removal: Removal) -> None:
    """Report nothing."""


@dataclass
class GcSummary:
    """Queue entries or candidates checked, blobs and manifests removed, and their bytes."""

    checked: int = 0
    removed: int = 0
    bytes: int = 0

    def add(self, removal: Removal, report: Report) -> None:
        """Count a removal and report it."""
        self.removed += 1
        self.bytes += removal.size
        report(removal)


class Collector:
    """Removes content that has been unreferenced for ``grace`` seconds; ``now`` is the wall clock.

    An untagged manifest stays until ``keep_untagged`` seconds after its last pull by digest.
    """

    def __init__(
        self,
        gc_queries: GcQueries,
        pins: Pins,
        remover: Remover,
        *,
        grace: float,
        keep_untagged: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._gc_queries, self._pins, self._remover = gc_queries, pins, remover
        self._grace, self._keep_untagged, self._now = grace, keep_untagged, now

    async def collect(self, report: Report) -> GcSummary:
        """Process every due entry of the GC queue, and report each removal."""
        due = self._now() - self._grace
        cutoffs = Cutoffs(due=due, recent=due, pulled=self._now() - max(self._grace, self._keep_untagged))
        await self._remover.finish_earlier()
        pinned = await self._pins.find_pinned()
        return await self._collect(cutoffs, pinned.manifests, "unreferenced", report)

    async def purge(self, report: Report) -> GcSummary:
        """Remove what a purge has left unreferenced, without a grace time."""
        return await self._collect(PURGE, (), "purged", report)

    async def _collect(
        self, cutoffs: Cutoffs, pinned: Collection[Key], reason: Reason, report: Report
    ) -> GcSummary:
        summary = GcSummary()
        while (reviewed := await self._gc_queries.process_manifest_queue(cutoffs, pinned, BATCH)).count:
            summary.checked += reviewed.count
            for removal in reviewed.removed:
                summary.add(removal, report)
        while (due := await self._gc_queries.process_blob_queue(cutoffs, BATCH)).count:
            summary.checked += due.count
            removed = await self._remover.remove(due.unreferenced, reason, unless_referenced=True)
            if removed.busy:
                await self._gc_queries.postpone_blobs(removed.busy)
            for digest, size in removed.gone:
                summary.add(Removal(digest, size, "no manifest names it"), report)
        return summary
