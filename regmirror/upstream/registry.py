"""The clients of all upstreams, and their replacement at a reload."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from pathlib import Path

from regmirror.config.schema import Upstream
from regmirror.telemetry.events import Emit
from regmirror.upstream.client import UpstreamClient


class Upstreams(Mapping[str, UpstreamClient]):
    """The client of each configured upstream, by canonical name.

    With ``offline`` each request fails before it connects anywhere (B37). Their
    health is shared with the processes that use the same ``directory``. ``renew`` applies a new
    configuration; replaced clients stay open for the requests that they have started.
    """

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        *,
        emit: Emit,
        clock: Callable[[], float] = time.monotonic,
        offline: bool = False,
        now: Callable[[], float] = time.time,
        directory: Path | None = None,
    ) -> None:
        self._emit, self._clock, self._now, self._directory = emit, clock, now, directory
        self._clients = {name: self._make(name, config, offline) for name, config in upstreams.items()}
        self._replaced: set[UpstreamClient] = set()

    def _make(self, name: str, config: Upstream, offline: bool) -> UpstreamClient:
        return UpstreamClient(
            name,
            config,
            emit=self._emit,
            clock=self._clock,
            offline=offline,
            now=self._now,
            directory=self._directory,
        )

    def renew(
        self, upstreams: Mapping[str, Upstream], changed: Set[str], *, offline: bool
    ) -> set[UpstreamClient]:
        """Keep clients for exactly ``upstreams``, and make new ones where the configuration ``changed``.

        Returns the replaced and removed ones; the caller dismisses them when nothing uses them any
        more. Raises ConfigError as UpstreamClient does, and then changes nothing.
        """
        kept = {name: self._clients[name] for name in self._clients.keys() & upstreams.keys() - changed}
        made = {name: self._make(name, upstreams[name], offline) for name in upstreams.keys() - kept.keys()}
        replaced = set(self._clients.values()) - set(kept.values())
        self._clients = {name: made.get(name) or kept[name] for name in upstreams}
        self._replaced |= replaced
        for client in {*self._clients.values(), *self._replaced}:
            client.set_offline(offline)
        return replaced

    async def dismiss(self, clients: Iterable[UpstreamClient]) -> None:
        """Close replaced clients."""
        await _close_all(clients)
        self._replaced -= set(clients)

    def __getitem__(self, name: str) -> UpstreamClient:
        return self._clients[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._clients)

    def __len__(self) -> int:
        return len(self._clients)

    async def close(self) -> None:
        """Close every client and every replaced one; an error of one does not stop the others."""
        await _close_all({*self._clients.values(), *self._replaced})


async def _close_all(clients: Iterable[UpstreamClient]) -> None:
    await asyncio.gather(*(client.close() for client in clients), return_exceptions=True)
