"""The parts of maintenance, for a worker and for the commands alike."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from regmirror.blobs import open_store
from regmirror.blobs.base import BlobStore, Removable
from regmirror.blobs.staging import Staging
from regmirror.config.schema import Config
from regmirror.maintenance.capacity import Capacity, Limits
from regmirror.maintenance.disk import Disk, LocalDisk
from regmirror.maintenance.gc import Collector
from regmirror.maintenance.news import InvalidationMarker, News
from regmirror.maintenance.purge import Purger
from regmirror.maintenance.reconcile import ReconcileSummary, reconcile
from regmirror.maintenance.remover import Remover
from regmirror.maintenance.scrub import RepairBlob, Scrubber
from regmirror.maintenance.turns import LocalTurns, Turns
from regmirror.metadata.gc import GcQueries
from regmirror.metadata.inventory import Inventory
from regmirror.metadata.pins import Pins
from regmirror.metadata.store import MetadataStore
from regmirror.oci.names import Digest
from regmirror.telemetry.events import Emit


@dataclass(frozen=True, kw_only=True)
class Toolkit:
    """What maintenance tasks need; ``is_dry`` for a dry run. ``now`` is the wall clock."""

    metadata: MetadataStore
    gc_queries: GcQueries
    inventory: Inventory
    pins: Pins
    store: BlobStore
    staging: Staging
    remover: Remover
    turns: Turns
    news: News
    disk: Disk
    now: Callable[[], float]
    is_dry: bool = False

    def collector(self, config: Config) -> Collector:
        """Garbage collection by the grace times of ``config``."""
        return Collector(
            self.gc_queries,
            self.pins,
            self.remover,
            grace=config.gc.grace,
            keep_untagged=config.gc.keep_untagged,
            now=self.now,
        )

    def purger(self, config: Config) -> Purger:
        """Purge on command."""
        return Purger(self.metadata, self.gc_queries, self.remover, self.collector(config))

    def capacity(self, config: Config, flush_pulls: Callable[[], Awaitable[None]]) -> Capacity:
        """The limits of ``config``; ``flush_pulls`` writes the last pulls before an eviction."""
        return Capacity(
            limits=limits_of(config),
            disk=self.disk,
            staging=self.staging,
            metadata=self.metadata,
            gc_queries=self.gc_queries,
            pins=self.pins,
            remover=self.remover,
            news=self.news,
            flush_pulls=flush_pulls,
            is_dry=self.is_dry,
        )

    def scrubber(self, emit: Emit, repair: RepairBlob, rate: float, *, is_resumable: bool = True) -> Scrubber:
        """A scrub at ``rate`` bytes a second; servers drop their caches after each deleted row."""
        return Scrubber(
            inventory=self.inventory,
            store=self.store,
            emit=emit,
            repair=repair,
            rate=rate,
            now=self.now,
            is_resumable=is_resumable,
            on_drop=self.news.publish,
        )

    async def reconcile(self) -> ReconcileSummary:
        """Finish interrupted removals, so that their files get no new row, and compare files and rows."""
        await self.remover.finish_earlier()
        return await reconcile(self.inventory, self.store, None if self.is_dry else self.staging, self.now())


def open_toolkit(
    root: Path, metadata: MetadataStore, emit: Emit, now: Callable[[], float] = time.time
) -> Toolkit:
    """Maintenance of the local store below ``root`` with the database of ``metadata``."""
    store, gc_queries = open_store(root), GcQueries(metadata.database, now)
    staging = Staging(root / "staging")
    return Toolkit(
        metadata=metadata,
        gc_queries=gc_queries,
        inventory=Inventory(metadata.database, now),
        pins=Pins(metadata.database, now),
        store=store,
        staging=staging,
        remover=Remover(gc_queries, store, emit),
        turns=LocalTurns(root),
        news=InvalidationMarker(root),
        disk=LocalDisk(root, staging),
        now=now,
    )


def dry_run_toolkit(toolkit: Toolkit) -> Toolkit:
    """A toolkit that deletes no file. Its rows must be those of a copy of the database."""
    remover = Remover(toolkit.gc_queries, _DryRunStore(toolkit.store), lambda event: None)
    return replace(toolkit, remover=remover, is_dry=True)


def limits_of(config: Config) -> Limits:
    """The limits of ``config`` in bytes."""
    return Limits(int(config.storage.max_size), int(config.storage.min_free))


class _DryRunStore:
    """A store whose files are not deleted; a blob that is being read counts as busy all the same."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store

    def exists(self, digest: Digest) -> bool:
        return self._store.exists(digest)

    def lock_for_removal(self, digest: Digest) -> Removable | None:
        locked = self._store.lock_for_removal(digest)
        if locked is None:
            return None
        locked.close()
        return _DryRunBlob(locked.size)


@dataclass
class _DryRunBlob:
    size: int

    def unlink(self) -> None:
        """Keep the file."""

    def close(self) -> None:
        """Nothing is locked."""
