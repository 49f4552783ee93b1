"""A generation: the parts of a worker that are built from one configuration.

A reload replaces the generation of a worker. A request is served by one generation to its end; a
replaced generation is closed when its last request has ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from regmirror.blobs.base import BlobStore
from regmirror.config.schema import Config
from regmirror.downloads.registry import Downloads
from regmirror.maintenance.scheduler import MaintenanceScheduler
from regmirror.maintenance.toolkit import Toolkit
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
from regmirror.v2.routes import Handler, Routes
from regmirror.v2.sender import Sender


@dataclass(frozen=True, kw_only=True)
class Times:
    """The clocks and deadlines of a worker, which tests replace.

    ``now`` is the wall clock, ``clock`` a monotonic one. A client waits ``stale_deadline`` seconds
    for an upstream when a stale response is possible, and ``cold_deadline`` otherwise.
    """

    now: Callable[[], float] = time.time
    clock: Callable[[], float] = time.monotonic
    stale_deadline: float = STALE_DEADLINE
    cold_deadline: float = COLD_DEADLINE


@dataclass(frozen=True, kw_only=True)
class WorkerResources:
    """The parts of a worker that outlive a reload."""

    times: Times
    metrics: Metrics
    emit: Emit
    toolkit: Toolkit
    upstreams: Upstreams
    metadata_cache: MetadataCache
    downloads: Downloads
    sender: Sender
    scheduler: MaintenanceScheduler
    lists: ListCache = field(default_factory=ListCache)

    @property
    def metadata(self) -> MetadataStore:
        """The database."""
        return self.toolkit.metadata

    @property
    def store(self) -> BlobStore:
        """The stored blobs."""
        return self.toolkit.store


@dataclass(eq=False, kw_only=True)
class Generation:
    """The parts that serve by one configuration."""

    resolver: Resolver
    mirror: Mirror
    listings: Listings
    routes: Routes

    async def repair(self, repository: Repository, digest: Digest) -> None:
        """Download a blob again and store it; raises RegistryError if no upstream sends it."""
        result = await self.mirror.get_blob(repository, digest)
        blob = result.content
        try:
            end = 0
            while (limit := await blob.wait_until_readable(end)) > end and limit != blob.size:
                end = limit
        finally:
            blob.close()

    async def close(self) -> None:
        """Cancel requests to upstreams that no client waits for."""
        await self.listings.close()
        await self.resolver.close()
        await self.mirror.close()


def open_generation(
    resources: WorkerResources, config: Config, operations: Mapping[str, Handler]
) -> Generation:
    """The parts that serve by ``config``; ``operations`` are the handlers outside the registry API."""
    times, metadata_cache = resources.times, resources.metadata_cache
    upstream_access = UpstreamAccess(
        metadata_cache,
        dict(resources.upstreams),  # later reloads change the mapping itself
        offline=config.freshness.offline,
        stale_deadline=times.stale_deadline,
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
    response_cache = ResponseCache(resources.emit)
    routes = Routes(
        table=_upstream_table(config),
        pull=Pull(resolver, mirror, resources.sender, response_cache),
        lists=Lists(listings, config.known_hosts()[config.default_upstream]),
        response_cache=response_cache,
        operations=operations,
        emit=resources.emit,
    )
    return Generation(resolver=resolver, mirror=mirror, listings=listings, routes=routes)


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
