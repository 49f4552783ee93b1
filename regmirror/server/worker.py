"""A running worker: its effective configuration, and what is done to it while it serves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from regmirror.config.diff import Changes, Snapshot, plan_changes
from regmirror.config.loader import take_snapshot
from regmirror.config.schema import Config
from regmirror.maintenance.scrub import Finding, ScrubSummary
from regmirror.oci.names import Digest, Repository
from regmirror.server.generation import Generation, WorkerResources, open_generation
from regmirror.upstream.client import UpstreamClient
from regmirror.v2.routes import CurrentRoutes, Handler


class Worker:
    """The handle of a running worker. ``routes`` serve its requests."""

    def __init__(
        self, snapshot: Snapshot, resources: WorkerResources, operations: Mapping[str, Handler]
    ) -> None:
        self._snapshot, self._resources, self._operations = snapshot, resources, operations
        self._generation = open_generation(resources, snapshot.config, operations)
        self._ending: dict[Generation, asyncio.Task[None]] = {}  # replaced generations, the oldest first
        self.routes = CurrentRoutes(self._generation.routes)

    @property
    def config(self) -> Config:
        """The effective configuration."""
        return self._snapshot.config

    async def reload(self, config: Config) -> Changes:
        """Serve new requests by ``config``; requests and downloads in progress are not disturbed.

        Raises ConfigError, and then nothing has changed.
        """
        changes = plan_changes(self._snapshot, take_snapshot(config))
        new, resources = changes.target.config, self._resources
        enabled, offline = new.enabled_upstreams(), new.freshness.offline
        replaced = resources.upstreams.renew(enabled, changes.upstreams, offline=offline)
        resources.metrics.follow_config(enabled, new.storage.max_size)
        resources.scheduler.follow_config(new)
        resources.metadata_cache.negative_cache.max_age = new.freshness.missing_max_age
        resources.metadata_cache.negative_cache.clear()  # credentials may have changed
        self._snapshot = changes.target
        if changes.tables:
            old, self._generation = self._generation, open_generation(resources, new, self._operations)
            self.routes.routes = self._generation.routes
            self._ending[old] = asyncio.create_task(self._end(old, replaced, [*self._ending.values()]))
        return changes

    async def scrub(self, rate: float, report: Callable[[Finding], None]) -> ScrubSummary:
        """Verify every stored byte at ``rate`` bytes a second, and repair corrupt blobs.

        It is independent of the scheduled scrub, whose progress it neither uses nor changes.
        """
        resources = self._resources
        scrubber = resources.toolkit.scrubber(resources.emit, self.repair, rate, is_resumable=False)
        return await scrubber.scrub(report)

    async def repair(self, repository: Repository, digest: Digest) -> None:
        """Download a blob again, and return when it is stored; raises RegistryError."""
        await self._generation.repair(repository, digest)
        await self._resources.downloads.drain(digest)

    async def _end(
        self, old: Generation, replaced: set[UpstreamClient], earlier: list[asyncio.Task[None]]
    ) -> None:
        """Close a replaced generation and the clients replaced with it, when nothing uses them.

        Earlier generations may use clients that were replaced later, so generations end in order.
        """
        if earlier:
            await asyncio.wait(earlier)
        await old.routes.drain()
        await old.close()
        # A download keeps the client that it was started with, and only requests start one.
        await self._resources.downloads.drain()
        await self._resources.upstreams.dismiss(replaced)
        del self._ending[old]

    async def close(self) -> None:
        """Close every generation. The worker resources belong to their opener."""
        for task in (ending := list(self._ending.values())):
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        for generation in (self._generation, *self._ending):
            await generation.close()
