"""Access to upstreams: request coalescing, client deadlines, negative caching.

Client requests for the same content share one upstream request, which continues when they leave. A
client request waits for it until its deadline:

- With no stale response at hand: ``cold_deadline`` seconds after the upstream request began. Each
  sign of activity of that request (a connection, headers, a piece of its body) restarts the time,
  until ``longest`` seconds after it began.
- With a stale response at hand: ``stale_deadline`` seconds after it began. Activity does not
  extend this deadline.
- With an open circuit: ``GRACE`` seconds, then the error is the circuit's.
- In every case at least ``GRACE`` seconds, because a shared request may be about to end.

Activity is reported by ``health.activity.note(repository, subject)``. A second source of the same
bytes extends the deadline by the same call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

from regmirror.errors import (
    ManifestUnknown,
    RegistryError,
    UpstreamDenied,
    UpstreamError,
    UpstreamNotFound,
    UpstreamTimeout,
)
from regmirror.metadata.bounded_access import has_failed_read
from regmirror.metadata.cache import MetadataCache
from regmirror.mirror.cache_status import COALESCED, CachedResult
from regmirror.oci.names import Reference, Repository, Tag
from regmirror.singleflight import SingleFlight
from regmirror.upstream.client import UpstreamClient

T = TypeVar("T")
RequestKey = tuple[Repository, Reference]

STALE_DEADLINE: Final = 1.5  # seconds
COLD_DEADLINE: Final = 2.8  # seconds; clients try their next host after 3
LONGEST: Final = 25.0  # seconds; containerd gives up after 30
GRACE: Final = 0.05  # seconds


class UpstreamAccess:
    """Requests to ``upstreams``, by name, on behalf of clients; all deadlines are in seconds."""

    def __init__(
        self,
        metadata_cache: MetadataCache,
        upstreams: Mapping[str, UpstreamClient],
        *,
        offline: bool,
        stale_deadline: float = STALE_DEADLINE,
        cold_deadline: float = COLD_DEADLINE,
        longest: float = LONGEST,
    ) -> None:
        self.upstreams, self.offline = upstreams, offline
        self._metadata_cache = metadata_cache
        self._stale_deadline, self._cold_deadline, self._longest = stale_deadline, cold_deadline, longest
        self._started_at: WeakKeyDictionary[asyncio.Task[Any], float] = WeakKeyDictionary()

    def get_client(self, repository: Repository) -> UpstreamClient:
        """The client of the repository's upstream; raises UpstreamNotFound when offline."""
        if self.offline:
            raise _offline_error(repository)
        return self.upstreams[repository.upstream]

    def find_unavailability(self, repository: Repository) -> UpstreamError | None:
        """Why blobs of the repository cannot be fetched now, as far as memory knows."""
        if self.offline:
            return _offline_error(repository)
        return self.upstreams[repository.upstream].health.cached_unavailability("blobs")

    async def share(
        self,
        flight: SingleFlight[RequestKey, CachedResult[T]],
        key: RequestKey,
        work: Callable[[], Awaitable[CachedResult[T]]],
        unknown: type[RegistryError] = ManifestUnknown,
        *,
        has_stale: bool = False,
    ) -> CachedResult[T]:
        """The result of ``work``, which all concurrent requests for ``key`` share.

        Raises ``unknown`` if the upstream does not have the content or denies access to it, now or
        according to the negative cache; UpstreamTimeout with the reason ``slow`` at the deadline.
        """
        self._metadata_cache.negative_cache.check(*key, unknown)
        joined = key in flight
        with self.mapping_to_unknown(key, unknown):
            task = flight.start(key, work)
            result = await self.wait_for(key[0], task, has_stale=has_stale, subject=str(key[1]))
        if joined and result.cache_status.result == "miss":
            return replace(result, cache_status=COALESCED)
        return result

    async def wait_for(
        self, repository: Repository, task: asyncio.Task[T], *, has_stale: bool, subject: str = ""
    ) -> T:
        """The result of a shared ``task``, which continues after the deadline."""
        now = asyncio.get_running_loop().time()
        age = now - self._started_at.setdefault(task, now)
        return await self.with_deadline(
            repository, lambda: asyncio.shield(task), age=age, has_stale=has_stale, subject=subject
        )

    async def with_deadline(
        self,
        repository: Repository,
        wait: Callable[[], Awaitable[T]],
        *,
        age: float = 0.0,
        has_stale: bool = False,
        subject: str = "",
    ) -> T:
        """The result of ``wait``, which awaits an upstream request that began ``age`` seconds ago.

        ``wait`` is cancelled and called again when the deadline is extended, so it must not own the
        request. ``subject`` is the requested tag, digest or list, by which activity is reported.
        Raises UpstreamTimeout with the reason ``slow`` at the deadline, or UpstreamCircuitOpen.
        """
        if self.offline:
            return await wait()
        health, clock = self.upstreams[repository.upstream].health, asyncio.get_running_loop().time
        open_circuit = health.find_open_circuit()
        began = active_at = clock() - age
        activity = health.activity.watch(repository.name, subject)
        seconds = GRACE if open_circuit else self._stale_deadline if has_stale else self._cold_deadline
        while True:
            deadline = min(active_at + seconds, began + self._longest)
            try:
                async with asyncio.timeout_at(max(deadline, clock() + GRACE)) as timeout:
                    return await wait()
            except TimeoutError:
                if not timeout.expired():
                    raise
            if open_circuit:
                raise open_circuit
            waited = clock() - began
            if has_stale or activity.last_at <= active_at or waited >= self._longest:
                health.note_slow(waited)
                raise timeout_error(repository)
            active_at = activity.last_at

    @contextmanager
    def mapping_to_unknown(self, key: RequestKey, unknown: type[RegistryError]) -> Iterator[None]:
        """Raise ``unknown`` for an upstream's 404, 401 and 403, and add it to the negative cache.

        Clients never see the upstream's challenge.
        """
        try:
            yield
        except (UpstreamNotFound, UpstreamDenied) as error:
            missing = unknown(error.message)
            # Only the upstream defines a tag. A digest that it does not have may still be stored here.
            missing.is_definite = isinstance(key[1], Tag) and not self.offline
            if missing.is_definite or not has_failed_read():
                denied = isinstance(error, UpstreamDenied)
                self._metadata_cache.negative_cache.put(*key, missing, denied=denied)
            raise missing from error


def timeout_error(repository: Repository) -> UpstreamTimeout:
    """The error of a response that came too late for the client."""
    return UpstreamTimeout(repository.upstream, "slow to respond", reason="slow")


def _offline_error(repository: Repository) -> UpstreamNotFound:
    message = f"{repository}: the content is not cached, and the mirror is offline"
    return UpstreamNotFound(repository.upstream, message, reason="offline")
