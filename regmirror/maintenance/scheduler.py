"""Scheduled maintenance of a worker: eviction, garbage collection and scrub, when they are due.

Workers and commands share a store: the process that gets the turn does a task, the others try again
later. The database records when each task last ended.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from regmirror.config.schema import Config
from regmirror.maintenance.capacity import Capacity
from regmirror.maintenance.scrub import TASK as SCRUB
from regmirror.maintenance.scrub import RepairBlob
from regmirror.maintenance.toolkit import Toolkit, limits_of
from regmirror.maintenance.turns import COLLECTION, EVICTION, TurnUnavailable
from regmirror.metadata.cache import MetadataCache
from regmirror.metadata.gc import Removal
from regmirror.metadata.inventory import MaintenanceRun
from regmirror.telemetry.events import Emit, MaintenanceEnded

RECONCILE_INTERVAL: Final = 86_400.0  # seconds
TICK: Final = 10.0  # seconds between checks whether a task is due


class MaintenanceScheduler:
    """The maintenance of one worker; a reload replaces ``config``."""

    def __init__(
        self, config: Config, toolkit: Toolkit, capacity: Capacity, metadata_cache: MetadataCache, emit: Emit
    ) -> None:
        self.config = config
        self._toolkit, self._capacity, self._metadata_cache = toolkit, capacity, metadata_cache
        self._emit = emit
        self._reconciled_at = float("-inf")  # by this process
        self._lock_failures: set[str] = set()

    def follow_config(self, config: Config) -> None:
        """Use another configuration from now on."""
        self.config = config
        self._capacity.limits = limits_of(config)

    @asynccontextmanager
    async def running(self, repair: RepairBlob) -> AsyncIterator[None]:
        """Do what is due until the block ends; ``repair`` downloads a corrupt blob again."""
        async with self._toolkit.news.follow(self._metadata_cache.invalidate_all):
            tasks = [
                asyncio.create_task(_every(TICK, self.tick)),
                asyncio.create_task(_every(TICK, lambda: self.scrub_if_due(repair))),
            ]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def tick(self) -> None:
        """Write the times of last pulls, evict what exceeds the limits, collect if that is due."""
        await self._metadata_cache.flush_pulls()
        await self._metadata_cache.health.check()
        with (
            self._lock_failures_logged(),
            suppress(SQLAlchemyError, OSError),  # reported where it happened; the next tick tries again
        ):
            await self._evict()
            await self.collect_if_due()
            await self._toolkit.metadata.reclaim_space()

    async def _evict(self) -> None:
        began = time.monotonic()
        async with self._toolkit.turns.try_turn(EVICTION) as is_alone:
            if not is_alone:  # two workers at once would evict twice as much
                return
            done = await self._capacity.enforce()
        if done.removed:
            seconds = time.monotonic() - began
            self._emit(MaintenanceEnded("eviction", done.checked, done.removed, done.bytes, seconds))

    async def collect_if_due(self) -> None:
        """Collect once per interval, in the process that gets the turn."""
        interval = self.config.gc.interval
        if not interval or not await self._is_due(COLLECTION, interval):
            return
        async with self._toolkit.turns.try_turn(COLLECTION) as is_alone:
            if is_alone and await self._is_due(COLLECTION, interval):
                await self._collect()

    async def _collect(self) -> None:
        toolkit, began = self._toolkit, time.monotonic()
        started_at = toolkit.now()
        if started_at - self._reconciled_at >= RECONCILE_INTERVAL:
            await toolkit.reconcile()
            self._reconciled_at = started_at
        removed_manifests = 0

        def count(removal: Removal) -> None:
            nonlocal removed_manifests
            removed_manifests += removal.repository is not None

        done = await toolkit.collector(self.config).collect(count)
        await toolkit.inventory.save_run(COLLECTION, MaintenanceRun(started_at, toolkit.now()))
        if removed_manifests:
            toolkit.news.publish()
        seconds = time.monotonic() - began
        self._emit(MaintenanceEnded("collection", done.checked, done.removed, done.bytes, seconds))

    async def scrub_if_due(self, repair: RepairBlob) -> None:
        """Verify everything once per interval, from where the last run was interrupted."""
        config, toolkit = self.config.scrub, self._toolkit
        with self._lock_failures_logged(), suppress(SQLAlchemyError, OSError):
            if not config.interval or not await self._is_due(SCRUB, config.interval):
                return
            async with toolkit.turns.try_turn(SCRUB) as is_alone:
                if not is_alone:
                    return
                began = time.monotonic()
                scrubber = toolkit.scrubber(self._emit, repair, config.rate)
                done = await scrubber.scrub(lambda finding: None)
                seconds = time.monotonic() - began
                self._emit(MaintenanceEnded("scrub", done.checked, done.corrupt, 0, seconds))

    @contextmanager
    def _lock_failures_logged(self) -> Iterator[None]:
        """Log each unusable lock once; the next tick tries it again."""
        try:
            yield
        except TurnUnavailable as error:
            if str(error) not in self._lock_failures:
                self._lock_failures.add(str(error))
                logging.getLogger(__name__).warning("%s", error)

    async def _is_due(self, task: str, interval: float) -> bool:
        last, now = await self._toolkit.inventory.get_run(task), self._toolkit.now()
        if task == SCRUB and not last.started_at and not last.ended_at:
            # A new store has nothing to verify: its first scrub is due after one interval.
            await self._toolkit.inventory.save_run(task, MaintenanceRun(now, now))
            return False
        return now - last.ended_at >= interval or last.ended_at > now


async def _every(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    """Call ``work`` at this interval; an unexpected exception is logged."""
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
        except Exception:  # a bug must not stop maintenance until the next restart
            logging.getLogger(__name__).exception("maintenance failed")
