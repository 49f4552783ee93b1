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

from regmirror.blobs.base import BlobStore
from regmirror.config.schema import Config
from regmirror.downloads.registry import Downloads
from regmirror.maintenance.scheduler import MaintenanceScheduler
from regmirror.metadata.cache import MetadataCache
from regmirror.metadata.store import MetadataStore
from regmirror.mirror.completeness import Completeness
from regmirror.mirror.listings import ListCache, Listings
from regmirror.mirror.mirror import Mirror
from regmirror.mirror.resolver import Resolver
from regmirror.mirror.upstream_access import COLD_DEADLINE, STALE_DEADLINE, UpstreamAccess
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
    store: BlobStore
    downloads: Downloads
    sender: Sender
    upkeep: MaintenanceScheduler
    lists: ListCache = field(default_factory=ListCache)


@dataclass(eq=False)
class Generation:
    """One configuration at work."""

    resolver: Resolver
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
        answer = await self.mirror.get_blob(repository, digest)
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
        await self.resolver.close()
        await self.mirror.close()


def open_generation(resources: WorkerResources, config: Config) -> Generation:
    """From the use cases up to the edge."""
    times, metadata_cache = resources.times, resources.metadata_cache
    upstream_access = UpstreamAccess(
        metadata_cache,
        dict(resources.upstreams),  # those of now, whatever comes later
        offline=config.freshness.offline,
        stale_deadline=times.patience,
        cold_deadline=times.cold_deadline,
    )
    resolver = Resolver(
        metadata_cache=metadata_cache,
        upstream_access=upstream_access,
        completeness=Completeness(metadata_cache, resources.store),
        freshness=config.freshness,
        now=times.now,
    )
    mirror = Mirror(
        metadata_cache=metadata_cache,
        store=resources.store,
        downloads=resources.downloads,
        upstream_access=upstream_access,
        emit=resources.emit,
    )
    listings = Listings(
        resolver=resolver,
        metadata_cache=metadata_cache,
        upstream_access=upstream_access,
        tag_max_age=config.freshness.tag_max_age,
        clock=times.clock,
        cache=resources.lists,
    )
    listing = Lists(listings, config.known_hosts()[config.default_upstream])
    response_cache = ResponseCache(resources.emit)
    pull = Pull(resolver, mirror, resources.sender, response_cache)
    routes = Routes(_upstream_table(config), pull, listing, resources.emit)
    return Generation(resolver, mirror, listings, routes, response_cache)


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
