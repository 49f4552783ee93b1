"""Asking upstreams: once for all who want the same, for as long as anybody should wait, and not
again for what was just refused.
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
from regmirror.metadata.bounded_reads import is_in_doubt
from regmirror.metadata.cache import MetadataCache
from regmirror.mirror.cache_status import COALESCED, CachedResult
from regmirror.oci.names import Reference, Repository, Tag
from regmirror.singleflight import SingleFlight
from regmirror.upstream.client import UpstreamClient

T = TypeVar("T")
Key = tuple[Repository, Reference]
Flight = SingleFlight[Key, CachedResult[T]]

STALE_DEADLINE: Final = 1.5  # seconds a client waits for an upstream while a stale answer is at hand
COLD_DEADLINE: Final = 2.8  # seconds it waits for one that shows no sign of life; clients fall back at 3
LONGEST: Final = 25.0  # seconds a client waits at most for one request; containerd gives up at 30
MOMENT: Final = 0.05  # seconds for work that others have waited for long enough, should it just end


class UpstreamAccess:
    """The way from the mirror to its upstreams.

    ``patience`` and ``cold_deadline`` are the seconds a client waits with and without a stale
    answer at hand; ``longest`` bounds the wait for an upstream that shows signs of life.
    """

    def __init__(
        self,
        metadata_cache: MetadataCache,
        upstreams: Mapping[str, UpstreamClient],
        *,
        offline: bool,
        patience: float = STALE_DEADLINE,
        cold_deadline: float = COLD_DEADLINE,
        longest: float = LONGEST,
    ) -> None:
        self._metadata_cache, self._upstreams, self._offline = metadata_cache, upstreams, offline
        self._patience, self._uncached_patience, self._longest = patience, cold_deadline, longest
        self._begun: WeakKeyDictionary[asyncio.Task[Any], float] = WeakKeyDictionary()

    def upstream(self, repository: Repository) -> UpstreamClient:
        """The client to ask; raises UpstreamNotFound if nobody may be asked."""
        if self._offline:
            raise self._offline_error(repository)
        return self._upstreams[repository.upstream]

    def find_unavailability(self, repository: Repository) -> UpstreamError | None:
        """Why no more of this repository can be had now, as far as is known; costs nothing."""
        if self._offline:
            return self._offline_error(repository)
        return self._upstreams[repository.upstream].health.cached_availability("blobs")

    def find_reserve_reason(self, repository: Repository) -> str | None:
        """Why what is cached should not be asked for (``rate_limit_reserve``)."""
        return self._upstreams[repository.upstream].health.find_reserve_reason()

    async def once(
        self,
        flight: SingleFlight[Key, CachedResult[T]],
        key: Key,
        work: Callable[[], Awaitable[CachedResult[T]]],
        unknown: type[RegistryError] = ManifestUnknown,
        *,
        has_stale: bool = False,
    ) -> CachedResult[T]:
        """Share one piece of work among all who ask for ``key`` at this moment; see ``patiently``."""
        self._metadata_cache.check_negative_cache(*key, unknown)
        joined = key in flight
        with self.mapping_to_unknown(key, unknown):
            task = flight.start(key, work)
            answer = await self.wait_for(key[0], task, has_stale=has_stale, subject=str(key[1]))
        if joined and answer.cache_status.result == "miss":
            return replace(answer, cache_status=COALESCED)
        return answer

    async def wait_for(
        self, repository: Repository, task: asyncio.Task[T], *, has_stale: bool, subject: str = ""
    ) -> T:
        """What shared work comes to, if it does in time; the work goes on in any case."""
        now = asyncio.get_running_loop().time()
        age = now - self._begun.setdefault(task, now)
        return await self.with_deadline(
            repository, lambda: asyncio.shield(task), age=age, has_stale=has_stale, subject=subject
        )

    async def with_deadline(
        self,
        repository: Repository,
        ask: Callable[[], Awaitable[T]],
        *,
        age: float = 0.0,
        has_stale: bool = False,
        subject: str = "",
    ) -> T:
        """What ``ask`` returns, which has been in the air for ``age`` seconds.

        Raises UpstreamTimeout with reason ``slow`` when patience has run out. Without a stale answer
        at hand, a sign of life of this request begins it again, up to ``longest`` seconds in all;
        other requests say nothing of this one. ``subject`` is the tag, the digest or the list that is
        requested. ``ask`` may be cancelled and called again: so it must share the work.
        """
        if self._offline:
            return await ask()
        health = self._upstreams[repository.upstream].health
        resting = health.find_open_circuit()
        began = asyncio.get_running_loop().time() - age
        signs = health.signs.watch(repository.name, subject)
        patience = MOMENT if resting else self._patience if has_stale else self._uncached_patience
        heard = began
        while True:
            try:
                async with asyncio.timeout_at(self._deadline(began, heard, patience)) as waiting:
                    return await ask()
            except TimeoutError:
                if not waiting.expired():
                    raise
            if resting:
                raise resting
            waited = asyncio.get_running_loop().time() - began
            if has_stale or signs.heard_at <= heard or waited >= self._longest:
                health.note_slow(waited)
                raise UpstreamTimeout(repository.upstream, "is slow to answer", reason="slow")
            heard = signs.heard_at

    def _deadline(self, began: float, heard: float, patience: float) -> float:
        """When patience runs out; never at once, since the work may just be about to end."""
        now = asyncio.get_running_loop().time()
        return max(min(heard + patience, began + self._longest), now + MOMENT)

    @contextmanager
    def mapping_to_unknown(self, key: Key, unknown: type[RegistryError]) -> Iterator[None]:
        """What the upstream does not have, or not for us, is unknown to clients: for a while
        without asking again. They never see the upstream's own challenge.
        """
        try:
            yield
        except (UpstreamNotFound, UpstreamDenied) as error:
            said = unknown(error.message)
            # The upstream decides what a tag means; content of a digest may be stored although it says 404.
            said.is_definite = isinstance(key[1], Tag) and not self._offline
            if said.is_definite or not is_in_doubt():
                self._metadata_cache.cache_missing(*key, said, denied=isinstance(error, UpstreamDenied))
            raise said from error

    @staticmethod
    def _offline_error(repository: Repository) -> UpstreamNotFound:
        message = f"{repository} has nothing more stored here, and the mirror is offline"
        return UpstreamNotFound(repository.upstream, message, reason="offline")
