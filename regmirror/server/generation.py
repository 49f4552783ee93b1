"""What a reload replaces: everything between the HTTP edge and the parts that last.

A service is made of one configuration and never changes. A request ends by the service that it
began with; a service that has been replaced ends with its last request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from regmirror.blobs.local import LocalBlobStore
from regmirror.config.schema import Config
from regmirror.downloads.registry import Downloads
from regmirror.maintenance.scheduler import MaintenanceScheduler
from regmirror.metadata.cache import MetadataCache
from regmirror.metadata.store import MetadataStore
from regmirror.mirror.freshness import FreshnessPolicy, FreshnessRules
from regmirror.mirror.listings import KeptLists, Listings
from regmirror.mirror.mirror import Mirror, Parts
from regmirror.mirror.upstream_access import COLD_DEADLINE, STALE_DEADLINE
from regmirror.oci.names import Digest, Repository
from regmirror.oci.paths import Patterns, UpstreamTable
from regmirror.telemetry.events import Emit
from regmirror.telemetry.metrics import Metrics
from regmirror.upstream.registry import Upstreams
from regmirror.v2.lists import Lists
from regmirror.v2.pull import Pull
from regmirror.v2.response_cache import ResponseCache
from regmirror.v2.routes import Routes
from regmirror.v2.sender import Sender


@dataclass(frozen=True)
class Times:
    """What a worker measures time by: the wall clock, a monotonic one, and how long a client waits
    for an upstream with and without a stale answer at hand. Tests replace them.
    """

    now: Callable[[], float] = time.time
    clock: Callable[[], float] = time.monotonic
    patience: float = STALE_DEADLINE
    cold_deadline: float = COLD_DEADLINE


@dataclass(frozen=True)
class WorkerResources:
    """The parts of a worker that live as long as it does, whatever is configured meanwhile."""

    root: Path
    times: Times
    metrics: Metrics
    emit: Emit
    metadata: MetadataStore
    upstreams: Upstreams
    metadata_cache: MetadataCache
    store: LocalBlobStore
    downloads: Downloads
    sender: Sender
    upkeep: MaintenanceScheduler
    lists: KeptLists = field(default_factory=KeptLists)


@dataclass(eq=False)
class Generation:
    """One configuration at work."""

    mirror: Mirror
    listings: Listings
    routes: Routes
    response_cache: ResponseCache
    _uses: int = 0
    _unused: asyncio.Event = field(default_factory=asyncio.Event)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Held while a request is answered."""
        self._uses += 1
        try:
            yield
        finally:
            self._uses -= 1
            if not self._uses:
                self._unused.set()

    async def drain(self) -> None:
        """Wait until no request uses it; for one that gets no new ones."""
        while self._uses:
            self._unused.clear()
            await self._unused.wait()

    async def repair(self, repository: Repository, digest: Digest) -> None:
        """Fetch a blob anew and store it; raises RegistryError if it cannot be had."""
        answer = await self.mirror.blob(repository, digest)
        try:
            read = 0
            while (
                limit := await answer.content.wait_until_readable(read)
            ) > read and limit != answer.content.size:
                read = limit
        finally:
            answer.content.close()

    async def close(self) -> None:
        """End what is still being asked of upstreams, although nobody waits for it."""
        await self.listings.close()
        await self.mirror.close()


def open_generation(resources: WorkerResources, config: Config) -> Generation:
    """From the use cases up to the edge."""
    freshness, times = config.freshness, resources.times
    upstreams = dict(resources.upstreams)  # those of now, whatever comes later
    mirror = Mirror(
        Parts(
            resources.metadata_cache,
            resources.store,
            resources.downloads,
            upstreams,
            _freshness_rules(config),
            resources.emit,
            freshness.offline,
            times.now,
            times.patience,
            times.cold_deadline,
            freshness.on_missing,
            freshness.incomplete,
        )
    )
    listings = Listings(
        mirror,
        resources.metadata_cache,
        upstreams,
        tag_max_age=freshness.tag_max_age,
        offline=freshness.offline,
        clock=times.clock,
        kept=resources.lists,
    )
    listing = Lists(listings, config.known_hosts()[config.default_upstream])
    response_cache = ResponseCache(resources.emit)
    pull = Pull(mirror, resources.sender, response_cache)
    routes = Routes(_upstream_table(config), pull, listing, resources.emit)
    return Generation(mirror, listings, routes, response_cache)


def _upstream_table(config: Config) -> UpstreamTable:
    return UpstreamTable(
        config.known_hosts(),
        config.default_upstream,
        {
            name: Patterns(upstream.allow, upstream.deny)
            for name, upstream in config.enabled_upstreams().items()
            if upstream.allow != ["**"] or upstream.deny
        },
    )


def _freshness_rules(config: Config) -> FreshnessRules:
    stale = config.freshness.stale_if_error
    return FreshnessRules(
        FreshnessPolicy(config.freshness.tag_max_age, stale),
        tuple((rule.match, FreshnessPolicy(rule.tag_max_age, stale)) for rule in config.freshness.rules),
    )
