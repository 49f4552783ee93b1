"""What a worker does beside answering: collection, eviction and scrub when they are due.

Several workers and commands share a store: whoever holds the lock does it, the others look again
later. When a collection was done last stands in the database.
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
from regmirror.maintenance.scrub import CHORE as SCRUB
from regmirror.maintenance.scrub import RepairBlob
from regmirror.maintenance.toolkit import InvalidationMarker, LockUnusable, Toolkit, limits_of, try_turn
from regmirror.metadata.cache import MetadataCache
from regmirror.metadata.inventory import Chore
from regmirror.metadata.vacuum import give_back
from regmirror.telemetry.events import Emit, UpkeepEnded

COLLECTION: Final = "collection"
SWEEP_INTERVAL: Final = 86_400.0  # seconds between comparisons of all files and rows
LOOK: Final = 0.1  # seconds between looks whether a command has taken something away
TICK: Final = 10.0  # seconds between looks whether something is due


class MaintenanceScheduler:
    """The chores of one worker; ``config`` is replaced at a reload."""

    def __init__(
        self, config: Config, toolkit: Toolkit, room: Capacity, metadata_cache: MetadataCache, emit: Emit
    ) -> None:
        self.config = config
        self._toolkit, self._room, self._metadata_cache, self._emit = toolkit, room, metadata_cache, emit
        self._notice = InvalidationMarker(toolkit.root)
        self._swept_at = float("-inf")  # by this process
        self._lock_failures: set[str] = set()

    def follow_config(self, config: Config) -> None:
        """Work by another configuration from now on."""
        self.config = config
        self._room.limits = limits_of(config)

    @asynccontextmanager
    async def at_work(self, repair: RepairBlob) -> AsyncIterator[None]:
        """While this lasts, do what is due; ``heal`` fetches anew what a scrub finds rotten."""
        tasks = [
            asyncio.create_task(_every(LOOK, self.look)),
            asyncio.create_task(_every(TICK, self.tick)),
            asyncio.create_task(_every(TICK, lambda: self.scrub_if_due(repair))),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def look(self) -> None:
        """Forget what is remembered if a command has taken something away."""
        if self._notice.is_new():
            self._metadata_cache.invalidate_all()

    async def tick(self) -> None:
        """Write the times of last pulls; evict what is too much; collect if that is due."""
        await self._metadata_cache.flush_pulls()
        await self._metadata_cache.check_database()
        with (
            self._lock_failures_logged(),
            suppress(SQLAlchemyError, OSError),
        ):  # told where it happened, and tried again
            await self._evict()
            await self.collect_if_due()
            await asyncio.to_thread(give_back, self._toolkit.metadata.database.path)

    async def _evict(self) -> None:
        began = time.monotonic()
        with try_turn(self._toolkit.root, "eviction") as is_alone:
            if not is_alone:  # else each worker evicts what one of them had to
                return
            summary = await self._room.keep()
        if summary.removed:
            ended = UpkeepEnded(
                "eviction", summary.checked, summary.removed, summary.bytes, time.monotonic() - began
            )
            self._emit(ended)

    async def collect_if_due(self) -> None:
        """One collection an interval, by whichever process comes first."""
        interval = self.config.gc.interval
        if not interval or not await self._is_due(COLLECTION, interval):
            return
        with try_turn(self._toolkit.root) as is_alone:
            if is_alone and await self._is_due(COLLECTION, interval):
                await self._collect()

    async def _collect(self) -> None:
        toolkit, began = self._toolkit, time.monotonic()
        started_at = toolkit.now()
        if started_at - self._swept_at >= SWEEP_INTERVAL:
            await toolkit.reconcile()
            self._swept_at = started_at
        manifests = 0

        def tell(removal: object) -> None:
            nonlocal manifests
            manifests += getattr(removal, "repository", None) is not None

        summary = await toolkit.collector(self.config).collect(tell)
        await toolkit.inventory.save_chore(COLLECTION, Chore(started_at, toolkit.now()))
        if manifests:
            self._notice.give()
        seconds = time.monotonic() - began
        self._emit(UpkeepEnded("collection", summary.checked, summary.removed, summary.bytes, seconds))

    async def scrub_if_due(self, repair: RepairBlob) -> None:
        """Verify everything once an interval, from where the last run was broken off."""
        config, toolkit = self.config.scrub, self._toolkit
        with self._lock_failures_logged(), suppress(SQLAlchemyError, OSError):
            if not config.interval or not await self._is_due(SCRUB, config.interval):
                return
            with try_turn(toolkit.root, "scrub") as is_alone:
                if not is_alone:
                    return
                began = time.monotonic()
                scrubber = toolkit.scrubber(self._emit, repair, config.rate)
                done = await scrubber.scrub(lambda finding: None)
                seconds = time.monotonic() - began
                self._emit(UpkeepEnded("scrub", done.checked, done.rotten, 0, seconds))

    @contextmanager
    def _lock_failures_logged(self) -> Iterator[None]:
        """A lock that cannot be used is logged once; the work is tried again."""
        try:
            yield
        except LockUnusable as error:
            if str(error) not in self._lock_failures:
                self._lock_failures.add(str(error))
                logging.getLogger(__name__).warning("%s", error)

    async def _is_due(self, name: str, interval: float) -> bool:
        chore, now = await self._toolkit.inventory.find_chore(name), self._toolkit.now()
        if not chore.ended_at and name == SCRUB and not chore.started_at:
            # A new store has nothing to verify: its first scrub is an interval away.
            await self._toolkit.inventory.save_chore(name, Chore(now, now))
            return False
        return now - chore.ended_at >= interval or chore.ended_at > now


async def _every(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    """Again and again, also after a failure that nobody foresaw: that one is logged."""
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
        except Exception:  # a defect of ours must not end the chore until the next restart
            logging.getLogger(__name__).exception("upkeep failed")
