"""Collecting what nothing references, while pulls go on.

A collection settles the reviews that are due: first manifests that no tag, index or subject
holds, and what they held in their turn; then blobs that no manifest names. Its work is
proportional to what has changed; ``reconcile.py`` is the backstop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from regmirror.maintenance.remover import Remover
from regmirror.metadata.gc import PURGE, GcQueries, Key, Reason, Removal, Terms
from regmirror.metadata.pins import Pins

BATCH: Final = 500  # reviews settled in one transaction: pulls wait for it to write
Report = Callable[[Removal], None]


@dataclass
class GcSummary:
    """What a run has done so far: reviews settled, blobs and manifests removed, and their bytes."""

    checked: int = 0
    removed: int = 0
    bytes: int = 0

    def add(self, removal: Removal) -> None:
        self.removed += 1
        self.bytes += removal.size


class Collector:
    """Collects what has been without a holder for ``grace`` seconds.

    A manifest that was pulled by its digest after it lost its tag, or without ever having had
    one, stays ``keep_untagged`` seconds longer than that pull.
    """

    def __init__(
        self,
        curation: GcQueries,
        pins: Pins,
        remover: Remover,
        *,
        grace: float,
        keep_untagged: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._curation, self._pins, self._remover = curation, pins, remover
        self._grace, self._keep_untagged, self._now = grace, keep_untagged, now

    async def collect(self, tell: Report) -> GcSummary:
        """Settle every review that is due; ``tell`` hears of each removal."""
        due = self._now() - self._grace
        terms = Terms(due=due, young=due, pulled=self._now() - max(self._grace, self._keep_untagged))
        await self._remover.finish_earlier()
        pinned = await self._pins.find_pinned()
        return await self._settle(terms, pinned.manifests, "unreferenced", tell)

    async def purge(self, tell: Report) -> GcSummary:
        """Collect at once what a purge has let go of, however young it is."""
        return await self._settle(PURGE, (), "purged", tell)

    async def _settle(self, terms: Terms, pinned: Collection[Key], reason: Reason, tell: Report) -> GcSummary:
        summary = GcSummary()

        def note(removal: Removal) -> None:
            summary.add(removal)
            tell(removal)

        while (reviewed := await self._curation.review_manifests(terms, pinned, BATCH)).count:
            summary.checked += reviewed.count
            for removal in reviewed.removed:
                note(removal)
        while (due := await self._curation.review_blobs(terms, BATCH)).count:
            summary.checked += due.count
            removed = await self._remover.remove(due.unheld, reason, unless_named=True)
            if removed.busy:
                await self._curation.put_off_blobs(removed.busy)
            for digest, size in removed.gone:
                note(Removal(digest, size, "no manifest names it"))
        return summary
