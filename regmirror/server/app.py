"""The composition root: a Config in, a web.Application out. Read it from top to bottom.

First the files and the database are brought into shape (``prepare``, once for all workers).
Then, in each worker, from the bottom up: the parts that last as long as it does (listeners,
metadata, upstreams, downloads), and on top of them the service that a reload replaces (the
mirror and the HTTP edge: ``generation.py``). What is started is stopped in reverse order.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from aiohttp import web
from aiohttp.web_request import BaseRequest

from regmirror.blobs.local import LocalBlobStore
from regmirror.blobs.staging import Staging
from regmirror.config.diff import Changes, Snapshot, plan_changes
from regmirror.config.loader import take_snapshot
from regmirror.config.schema import Config
from regmirror.downloads.registry import Downloads
from regmirror.downloads.transfer_context import TransferContext
from regmirror.errors import ConfigError
from regmirror.maintenance.capacity import Capacity
from regmirror.maintenance.scheduler import MaintenanceScheduler
from regmirror.maintenance.scrub import Finding, ScrubSummary
from regmirror.maintenance.toolkit import Toolkit, open_toolkit
from regmirror.metadata.cache import MetadataCache
from regmirror.metadata.recovery import DatabaseMonitor, DatabaseRecovery
from regmirror.metadata.store import MetadataStore
from regmirror.metadata.upgrade import database_path
from regmirror.oci.names import Digest, Repository
from regmirror.server.generation import Generation, Times, WorkerResources, open_generation
from regmirror.server.ops import Ops
from regmirror.telemetry import logs
from regmirror.telemetry.events import Emit, to_all
from regmirror.telemetry.logs import RequestLog
from regmirror.telemetry.metrics import Metrics
from regmirror.upstream.client import UpstreamClient
from regmirror.upstream.registry import Upstreams
from regmirror.v2.connection import EDGE, Edge
from regmirror.v2.response_cache import ResponseCache
from regmirror.v2.sender import Sender

BULK_THREADS: Final = 4  # write and hash; more than two do not help a machine's disk
BULK_NICENESS: Final = 10  # so that downloads do not delay answers
REFRESH: Final = 5.0  # seconds between figures for whichever worker shows them
STAGING_MAX_AGE: Final = 7 * 86400.0  # seconds until a download nobody resumes is swept


REAL_TIMES: Final = Times()


def prepare(config: Config) -> None:
    """Create directories, migrate the database, sweep old staging, check upstreams.

    Raises ConfigError.
    """
    root = Path(config.storage.path)
    staging = Staging(root / "staging")
    try:
        LocalBlobStore(root).prepare()
        staging.prepare()
        staging.sweep(time.time() - STAGING_MAX_AGE)
        _database_keeper(root).prepare()
    except OSError as error:
        reason = f"cannot be written: {(error.strerror or str(error)).lower()}; choose another"
        raise ConfigError("storage.path", config.storage.path, reason) from None
    check_upstreams(config)


def _database_keeper(root: Path) -> DatabaseRecovery:
    store = LocalBlobStore(root)

    def scan() -> Iterator[tuple[Digest, int, float]]:
        return ((blob.digest, blob.size, blob.stored_at) for blob in store.scan())

    return DatabaseRecovery(database_path(root), root / "quarantine", scan, _say)


def _say(text: str) -> None:
    sys.stderr.write(f"regmirror: {text}\n")


def check_upstreams(config: Config) -> None:
    """Judge certificates and addresses of upstreams before any worker meets them.

    Raises ConfigError.
    """
    Upstreams(config.enabled_upstreams(), emit=lambda event: None)


def create_app(config: Config, emit: Emit | None = None, *, times: Times = REAL_TIMES) -> web.Application:
    """The application of one worker; its parts live from start-up to clean-up.

    ``emit`` is told of every event in addition to metrics and log. Once it has started, its
    ``RUNNING`` is the worker's handle.
    """
    app = web.Application()

    async def parts(app: web.Application) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            app[WORKER] = running = await _assemble(config, emit, times, stack)
            app[EDGE] = Edge(running.serve, lambda: running.response_cache)
            yield

    app.cleanup_ctx.append(parts)
    return app


class Worker:
    """A worker while it runs: the parts that last, and the service of the configuration in force."""

    def __init__(self, snapshot: Snapshot, resources: WorkerResources) -> None:
        self._snapshot, self._resources = snapshot, resources
        self._service = open_generation(resources, snapshot.config)
        self._ending: dict[Generation, asyncio.Task[None]] = {}  # services that were replaced, in order
        self.ops = Ops(resources.root, resources.metadata, resources.metrics, clock=resources.times.clock)

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self._snapshot.config

    @property
    def response_cache(self) -> ResponseCache:
        """What the service of this moment answers without parsing."""
        return self._service.response_cache

    async def serve(self, request: BaseRequest) -> web.StreamResponse:
        """Answer by the service of this moment, to the end."""
        if request.method in ("GET", "HEAD"):
            operate = self.ops.handlers.get(request.rel_url.raw_path)
            if operate is not None:
                return await operate(request)
        service = self._service
        with service.in_use():
            return await service.routes.serve(request)

    async def reload(self, config: Config) -> Changes:
        """Serve by ``config`` from now on; what is in flight goes on as it began.

        Raises ConfigError for what cannot be used, and then nothing has changed.
        """
        changes = plan_changes(self._snapshot, take_snapshot(config))
        wanted, resources = changes.target.config, self._resources
        enabled, offline = wanted.enabled_upstreams(), wanted.freshness.offline
        replaced = resources.upstreams.renew(enabled, changes.upstreams, offline=offline)
        resources.metrics.follow_config(enabled, wanted.storage.max_size)
        resources.upkeep.follow_config(wanted)
        resources.metadata_cache.missing_max_age = wanted.freshness.missing_max_age
        resources.metadata_cache.clear_negative_cache()  # credentials may have changed
        self._snapshot = changes.target
        if changes.tables:
            old, self._service = self._service, open_generation(resources, wanted)
            self._ending[old] = asyncio.create_task(self._end(old, replaced, [*self._ending.values()]))
        return changes

    async def scrub(self, rate: float, tell: Callable[[Finding], None]) -> ScrubSummary:
        """Verify every stored byte at ``rate`` bytes a second, and heal what is rotten.

        By hand: wherever the scheduled scrub may be, in this process or in another one.
        """
        resources = self._resources
        toolkit = open_toolkit(resources.root, resources.metadata, resources.emit, resources.times.now)
        return await toolkit.scrubber(resources.emit, self.repair, rate, is_resumable=False).scrub(tell)

    async def repair(self, repository: Repository, digest: Digest) -> None:
        """See ``Service.heal``; returns when the blob is stored, if it can be."""
        await self._service.repair(repository, digest)
        await self._resources.downloads.drain(digest)

    async def _end(
        self, old: Generation, replaced: set[UpstreamClient], before: list[asyncio.Task[None]]
    ) -> None:
        """Close a service and the clients that were replaced with it, when nothing uses them.

        Earlier services may still use clients that are replaced later, so they end in order.
        """
        if before:
            await asyncio.wait(before)
        await old.drain()
        await old.close()
        # A download keeps the client that it was started with, and only requests start one.
        await self._resources.downloads.drain()
        await self._resources.upstreams.dismiss(replaced)
        del self._ending[old]

    async def close(self) -> None:
        """End every service; the parts that last are closed by who opened them."""
        for task in (ending := list(self._ending.values())):
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        for service in (self._service, *self._ending):
            await service.close()


WORKER: Final = web.AppKey("running", Worker)


@asynccontextmanager
async def open_worker(config: Config) -> AsyncIterator[Worker]:
    """What a worker has, without serving: for commands that fetch."""
    async with AsyncExitStack() as stack:
        yield await _assemble(config, None, REAL_TIMES, stack)


async def _assemble(config: Config, extra: Emit | None, times: Times, stack: AsyncExitStack) -> Worker:
    """The parts that last, from the bottom up; what ``stack`` holds is closed in reverse order."""
    snapshot = take_snapshot(config)  # first, so that a file replaced from now on is noticed
    stack.enter_context(logs.in_background())
    # listeners
    metrics = Metrics(config.enabled_upstreams(), config.storage.max_size)
    emit = to_all(metrics, RequestLog(), *([extra] if extra else []))
    # the outside world
    root = Path(config.storage.path)
    metadata = MetadataStore(database_path(root), times.now)
    stack.push_async_callback(metadata.close)
    upstreams = _open_upstreams(config, emit, times, stack)

    # what is known, and what is in flight
    metadata_cache = MetadataCache(
        metadata,
        emit,
        missing_max_age=config.freshness.missing_max_age,
        now=times.now,
        clock=times.clock,
        watch=DatabaseMonitor(metadata.database, _database_keeper(root)),
    )
    stack.push_async_callback(metadata_cache.close)
    metrics.follow_memories(metadata_cache.lookups)
    stack.callback(asyncio.create_task(_refresh(metrics)).cancel)
    toolkit = open_toolkit(root, metadata, emit, times.now)
    capacity = toolkit.capacity(config, metadata_cache.flush_pulls)
    downloads = _open_downloads(toolkit, capacity, metadata_cache, emit, stack)
    sender = Sender()
    stack.callback(sender.close)
    upkeep = MaintenanceScheduler(config, toolkit, capacity, metadata_cache, emit)

    # what a reload replaces
    resources = WorkerResources(
        root,
        times,
        metrics,
        emit,
        metadata,
        upstreams,
        metadata_cache,
        toolkit.store,
        downloads,
        sender,
        upkeep,
    )
    running = Worker(snapshot, resources)
    stack.push_async_callback(running.close)
    await stack.enter_async_context(upkeep.running(running.repair))
    return running


def _open_upstreams(config: Config, emit: Emit, times: Times, stack: AsyncExitStack) -> Upstreams:
    upstreams = Upstreams(
        config.enabled_upstreams(),
        emit=emit,
        clock=times.clock,
        offline=config.freshness.offline,
        now=times.now,
        directory=Path(config.storage.path) / "upstreams",
    )
    stack.push_async_callback(upstreams.close)
    return upstreams


async def _refresh(metrics: Metrics) -> None:
    while True:
        await asyncio.sleep(REFRESH)
        metrics.refresh()


def _open_downloads(
    toolkit: Toolkit, capacity: Capacity, metadata_cache: MetadataCache, emit: Emit, stack: AsyncExitStack
) -> Downloads:
    bulk = ThreadPoolExecutor(BULK_THREADS, "bulk", initializer=_be_nice)
    stack.callback(bulk.shutdown)
    context = TransferContext(
        staging=toolkit.staging,
        store=toolkit.store,
        record=metadata_cache.save_blob,
        emit=emit,
        bulk=bulk,
        reserve=capacity.reserve,
    )
    downloads = Downloads(context)
    stack.push_async_callback(downloads.close)
    return downloads


def _be_nice() -> None:
    """Run this thread after those that answer clients (Linux: niceness is per thread)."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BULK_NICENESS)
