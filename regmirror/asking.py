"""Asking upstreams: once for all who want the same, and not again for what was just refused."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from regmirror.errors import ManifestUnknown, RegistryError, UpstreamDenied, UpstreamNotFound
from regmirror.knowledge import Knowledge
from regmirror.names import Reference, Repository
from regmirror.outcomes import COALESCED, Answer
from regmirror.singleflight import SingleFlight
from regmirror.upstream.client import UpstreamClient

T = TypeVar("T")
Key = tuple[Repository, Reference]
Flight = SingleFlight[Key, Answer[T]]


class Asking:
    """The way from the mirror to its upstreams."""

    def __init__(
        self, knowledge: Knowledge, upstreams: Mapping[str, UpstreamClient], *, offline: bool
    ) -> None:
        self._knowledge, self._upstreams, self._offline = knowledge, upstreams, offline

    def upstream(self, repository: Repository) -> UpstreamClient:
        """The client to ask; raises UpstreamNotFound if nobody may be asked."""
        if self._offline:
            message = f"{repository} has nothing more stored here, and the mirror is offline"
            raise UpstreamNotFound(repository.upstream, message, reason="offline")
        return self._upstreams[repository.upstream]

    async def once(
        self,
        flight: SingleFlight[Key, Answer[T]],
        key: Key,
        work: Callable[[], Awaitable[Answer[T]]],
        unknown: type[RegistryError] = ManifestUnknown,
    ) -> Answer[T]:
        """Share one piece of work among all who ask for ``key`` at this moment."""
        self._knowledge.refuse_missing(*key, unknown)
        joined = key in flight
        with self.saying_unknown(key, unknown):
            answer = await flight.do(key, work)
        if joined and answer.outcome.result == "miss":
            return replace(answer, outcome=COALESCED)
        return answer

    @contextmanager
    def saying_unknown(self, key: Key, unknown: type[RegistryError]) -> Iterator[None]:
        """What the upstream does not have, or not for us, is unknown to clients: for a while
        without asking again. They never see the upstream's own challenge.
        """
        try:
            yield
        except (UpstreamNotFound, UpstreamDenied) as error:
            said = unknown(error.message)
            self._knowledge.note_missing(*key, said, denied=isinstance(error, UpstreamDenied))
            raise said from error
