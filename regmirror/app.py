"""The composition root: a Config in, a web.Application out. Read it from top to bottom.

First the files and the database are brought into shape (``prepare``, once for all workers).
Then, in each worker, from the bottom up: listeners, metadata, upstreams, downloads, the
mirror, and the HTTP edge on top. What is started is stopped in reverse order.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import web

from regmirror.blobs.local import LocalBlobStore
from regmirror.blobs.staging import Staging
from regmirror.config import Config
from regmirror.downloads import Downloads
from regmirror.errors import ConfigError
from regmirror.events import Emit, to_all
from regmirror.freshness import FreshnessPolicy, FreshnessRules
from regmirror.knowledge import Knowledge
from regmirror.listings import Listings
from regmirror.logs import RequestLog
from regmirror.metadata.store import MetadataStore
from regmirror.metadata.upgrade import database_path, upgrade
from regmirror.metrics import Metrics
from regmirror.mirror import PATIENCE, Mirror, Parts
from regmirror.routing import Patterns, UpstreamTable
from regmirror.sender import Sender
from regmirror.transfer import Workshop
from regmirror.upstream.client import Upstreams
from regmirror.v2.listing import Listing
from regmirror.v2.pull import Pull
from regmirror.v2.routes import Routes
from regmirror.web.ops import Ops

BULK_THREADS: Final = 4  # write and hash; more than two do not help a machine's disk
BULK_NICENESS: Final = 10  # so that downloads do not delay answers
FLUSH_INTERVAL: Final = 10.0  # seconds between writes of last-pull times
STAGING_MAX_AGE: Final = 7 * 86400.0  # seconds until a download nobody resumes is swept
MANIFEST_REQUEST_MAX: Final = 4 * 1024 * 1024


@dataclass(frozen=True)
class Times:
    """What a worker measures time by: the wall clock, a monotonic one, and how long a client waits
    for an upstream while a stale answer is at hand. Tests replace them.
    """

    now: Callable[[], float] = time.time
    clock: Callable[[], float] = time.monotonic
    patience: float = PATIENCE


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
    except OSError as error:
        reason = f"cannot be written: {(error.strerror or str(error)).lower()}; choose another"
        raise ConfigError("storage.path", config.storage.path, reason) from None
    upgrade(database_path(root))
    # Certificates and addresses of upstreams are judged here, before any worker starts.
    Upstreams(config.enabled_upstreams(), emit=lambda event: None)


def create_app(config: Config, emit: Emit | None = None, *, times: Times = REAL_TIMES) -> web.Application:
    """The application of one worker; its parts live from start-up to clean-up.

    ``emit`` is told of every event in addition to metrics and log.
    """
    app = web.Application(client_max_size=MANIFEST_REQUEST_MAX)

    async def parts(app: web.Application) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            routes, ops = await _assemble(config, emit, times, stack)
            app[_ROUTES], app[_OPS] = routes, ops
            yield

    app.cleanup_ctx.append(parts)
    app.router.add_get("/healthz", _healthz)
    app.router.add_get("/readyz", _readyz)
    app.router.add_get("/metrics", _metrics)
    app.router.add_route("*", r"/{path:[\s\S]*}", _registry, expect_handler=_expect_nothing)
    return app


_ROUTES: Final = web.AppKey("routes", Routes)
_OPS: Final = web.AppKey("ops", Ops)


# The handlers exist before the parts they lead to, which need a running loop.


async def _healthz(request: web.Request) -> web.StreamResponse:
    return await request.app[_OPS].healthz(request)


async def _readyz(request: web.Request) -> web.StreamResponse:
    return await request.app[_OPS].readyz(request)


async def _metrics(request: web.Request) -> web.StreamResponse:
    return await request.app[_OPS].metrics(request)


async def _expect_nothing(request: web.Request) -> None:
    """No body is ever wanted, so nobody is told to go on and send one (``Expect: 100-continue``)."""


async def _registry(request: web.Request) -> web.StreamResponse:
    return await request.app[_ROUTES].serve(request)


async def _assemble(
    config: Config, extra: Emit | None, times: Times, stack: AsyncExitStack
) -> tuple[Routes, Ops]:
    """From the bottom up; what ``stack`` holds is closed in reverse order."""
    # listeners
    metrics = Metrics(config.enabled_upstreams(), config.storage.max_size)
    emit = to_all(metrics, RequestLog(), *([extra] if extra else []))

    # the outside world
    root = Path(config.storage.path)
    metadata = MetadataStore(database_path(root), times.now)
    stack.push_async_callback(metadata.close)
    offline, enabled = config.freshness.offline, config.enabled_upstreams()
    upstreams = Upstreams(enabled, emit=emit, clock=times.clock, offline=offline)
    stack.push_async_callback(upstreams.close)

    # what is known, and what is in flight
    knowledge = Knowledge(
        metadata,
        emit,
        missing_max_age=config.freshness.missing_max_age,
        now=times.now,
        clock=times.clock,
    )
    stack.push_async_callback(knowledge.flush_pulls)
    store = LocalBlobStore(root)
    downloads = _open_downloads(root, store, knowledge, emit, stack)
    sender = Sender()
    stack.callback(sender.close)
    await stack.enter_async_context(_housekeeping(knowledge))

    # use cases
    rules = _freshness_rules(config)
    parts = Parts(knowledge, store, downloads, upstreams, rules, emit, offline, times.now, times.patience)
    mirror = Mirror(parts)
    listings = Listings(
        mirror,
        knowledge,
        upstreams,
        tag_max_age=config.freshness.tag_max_age,
        offline=offline,
        clock=times.clock,
    )
    stack.push_async_callback(mirror.close)
    stack.push_async_callback(listings.close)

    # the edge
    listing = Listing(listings, config.known_hosts()[config.default_upstream])
    routes = Routes(_upstream_table(config), Pull(mirror, sender), listing, emit)
    return routes, Ops(root, metadata, metrics)


def _open_downloads(
    root: Path, store: LocalBlobStore, knowledge: Knowledge, emit: Emit, stack: AsyncExitStack
) -> Downloads:
    bulk = ThreadPoolExecutor(BULK_THREADS, "bulk", initializer=_be_nice)
    stack.callback(bulk.shutdown)
    workshop = Workshop(Staging(root / "staging"), store, knowledge.save_blob, emit, bulk)
    downloads = Downloads(workshop)
    stack.push_async_callback(downloads.close)
    return downloads


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


def _be_nice() -> None:
    """Run this thread after those that answer clients (Linux: niceness is per thread)."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BULK_NICENESS)


@asynccontextmanager
async def _housekeeping(knowledge: Knowledge) -> AsyncIterator[None]:
    """What is done every few seconds while the worker runs."""

    async def run() -> None:
        while True:
            await asyncio.sleep(FLUSH_INTERVAL)
            await knowledge.flush_pulls()

    task = asyncio.create_task(run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
