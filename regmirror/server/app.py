"""The composition root: from a configuration to the parts of a server. Read it from top to bottom.

``prepare`` runs once, before any worker: files and database. ``open_worker`` runs in each worker and
assembles its parts from the bottom up: telemetry, storage, upstreams, downloads, maintenance, and on
top of these worker resources the generation that a reload replaces (``generation.py``). What is
opened is closed in reverse order.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from regmirror.blobs.local import LocalBlobStore
from regmirror.blobs.staging import Staging
from regmirror.config.loader import take_snapshot
from regmirror.config.schema import Config
from regmirror.downloads.registry import Downloads
from regmirror.downloads.transfer_context import TransferContext
from regmirror.errors import ConfigError
from regmirror.maintenance.capacity import Capacity
from regmirror.maintenance.scheduler import MaintenanceScheduler
from regmirror.maintenance.toolkit import Toolkit, open_toolkit
from regmirror.metadata.cache import MetadataCache
from regmirror.metadata.recovery import DatabaseMonitor, DatabaseRecovery
from regmirror.metadata.store import MetadataStore
from regmirror.metadata.upgrade import database_path
from regmirror.oci.names import Digest
from regmirror.server.console import print_line
from regmirror.server.generation import Times, WorkerResources
from regmirror.server.http_server import HttpServer
from regmirror.server.ops import Ops
from regmirror.server.worker import Worker
from regmirror.telemetry import logs
from regmirror.telemetry.events import Emit, to_all
from regmirror.telemetry.logs import RequestLog
from regmirror.telemetry.metrics import Metrics
from regmirror.upstream import detached_body
from regmirror.upstream.registry import Upstreams
from regmirror.v2.connection import Connection, FastConnection, find_missing_names
from regmirror.v2.sender import Sender

BULK_THREADS: Final = 4  # write and hash; more than two do not help a machine's disk
BULK_NICENESS: Final = 10  # so that downloads do not delay responses
METRICS_INTERVAL: Final = 5.0  # seconds between two updates of the gauges that other workers report
STAGING_MAX_AGE: Final = 7 * 86400.0  # seconds without a write after which a staged file is removed


def prepare(config: Config) -> None:
    """Create directories, migrate the database, remove old staged files, check upstreams.

    Raises ConfigError.
    """
    root = Path(config.storage.path)
    staging = Staging(root / "staging")
    try:
        LocalBlobStore(root).prepare()
        staging.prepare()
        staging.sweep(time.time() - STAGING_MAX_AGE)
        _database_recovery(root).prepare()
    except OSError as error:
        reason = f"cannot be written: {(error.strerror or str(error)).lower()}; choose another"
        raise ConfigError("storage.path", config.storage.path, reason) from None
    check_upstreams(config)
    check_fast_paths()


def check_upstreams(config: Config) -> None:
    """Check certificates and addresses of upstreams; raises ConfigError."""
    Upstreams(config.enabled_upstreams(), emit=lambda event: None)


def check_fast_paths() -> None:
    """Log one warning for each fast path that the installed aiohttp does not support.

    Fast paths rely on private names of aiohttp (decision record 0029). Without them the server
    works by aiohttp's own path, more slowly. Workers are forked after this check, so that they
    inherit the cached result of ``detached_body.is_supported`` and do not log it again.
    """
    detached_body.is_supported()
    if missing := find_missing_names():
        logs.log_warning(
            "response cache is off: this version of aiohttp lacks names that it needs; install aiohttp<3.15",
            missing=missing,
        )


def open_http_server(worker: Worker) -> HttpServer:
    """The HTTP server of a worker; without the fast path where aiohttp does not support it."""
    connection: type[Connection] = Connection if find_missing_names() else FastConnection
    return HttpServer(worker.routes, connection)


@asynccontextmanager
async def open_worker(config: Config, *listeners: Emit, times: Times | None = None) -> AsyncIterator[Worker]:
    """A worker that does not serve connections yet, as commands use it.

    ``listeners`` receive every event, as metrics and log do.
    """
    async with AsyncExitStack() as stack:
        yield await _assemble(config, listeners, times or Times(), stack)


async def _assemble(
    config: Config, listeners: tuple[Emit, ...], times: Times, stack: AsyncExitStack
) -> Worker:
    snapshot = take_snapshot(config)  # first, so that files replaced from now on count as changed
    root = Path(config.storage.path)
    stack.enter_context(logs.in_background())
    metrics = _open_metrics(config, stack)
    emit = to_all(metrics, RequestLog(), *listeners)

    metadata = MetadataStore(database_path(root), times.now)
    stack.push_async_callback(metadata.close)
    upstreams = _open_upstreams(config, emit, times, stack)
    metadata_cache = _open_metadata_cache(config, metadata, emit, times, stack)
    metrics.follow_memories(metadata_cache.lookups)

    toolkit = open_toolkit(root, metadata, emit, times.now)
    capacity = toolkit.capacity(config, metadata_cache.flush_pulls)
    downloads = _open_downloads(toolkit, capacity, metadata_cache, emit, stack)
    sender = Sender()
    stack.callback(sender.close)
    scheduler = MaintenanceScheduler(config, toolkit, capacity, metadata_cache, emit)

    resources = WorkerResources(
        times=times,
        metrics=metrics,
        emit=emit,
        toolkit=toolkit,
        upstreams=upstreams,
        metadata_cache=metadata_cache,
        downloads=downloads,
        sender=sender,
        scheduler=scheduler,
    )
    worker = Worker(snapshot, resources, _open_operations(root, resources, stack).handlers)
    stack.push_async_callback(worker.close)
    await stack.enter_async_context(scheduler.running(worker.repair))
    return worker


def _open_metrics(config: Config, stack: AsyncExitStack) -> Metrics:
    metrics = Metrics(config.enabled_upstreams(), config.storage.max_size)
    stack.callback(asyncio.create_task(_refresh(metrics)).cancel)
    return metrics


async def _refresh(metrics: Metrics) -> None:
    while True:
        await asyncio.sleep(METRICS_INTERVAL)
        metrics.refresh()


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


def _open_metadata_cache(
    config: Config, metadata: MetadataStore, emit: Emit, times: Times, stack: AsyncExitStack
) -> MetadataCache:
    recovery = _database_recovery(Path(config.storage.path))
    metadata_cache = MetadataCache(
        metadata,
        emit,
        missing_max_age=config.freshness.missing_max_age,
        now=times.now,
        clock=times.clock,
        monitor=DatabaseMonitor(metadata.database, recovery),
    )
    stack.push_async_callback(metadata_cache.close)
    return metadata_cache


def _database_recovery(root: Path) -> DatabaseRecovery:
    store = LocalBlobStore(root)

    def scan() -> Iterator[tuple[Digest, int, float]]:
        return ((blob.digest, blob.size, blob.stored_at) for blob in store.scan())

    return DatabaseRecovery(database_path(root), root / "quarantine", scan, print_line)


def _open_downloads(
    toolkit: Toolkit, capacity: Capacity, metadata_cache: MetadataCache, emit: Emit, stack: AsyncExitStack
) -> Downloads:
    bulk = ThreadPoolExecutor(BULK_THREADS, "bulk", initializer=_lower_priority)
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


def _lower_priority() -> None:
    """Run this thread after those that respond to clients (Linux: niceness is per thread)."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BULK_NICENESS)


def _open_operations(root: Path, resources: WorkerResources, stack: AsyncExitStack) -> Ops:
    def find_read_error() -> str:
        is_readable = os.access(root / "blobs", os.R_OK | os.X_OK)
        return "" if is_readable else f"the store at {root} cannot be read"

    def find_write_error() -> str:
        return resources.toolkit.staging.find_write_error()

    ops = Ops(
        find_read_error=find_read_error,
        find_write_error=find_write_error,
        metadata=resources.metadata,
        metrics=resources.metrics,
        clock=resources.times.clock,
    )
    stack.callback(ops.close)
    return ops
