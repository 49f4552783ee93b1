"""A client of a fake upstream, and the events that it emitted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from regmirror.config.schema import Upstream
from regmirror.oci.names import Digest, Repository, Tag
from regmirror.telemetry.events import Event
from regmirror.upstream.client import UpstreamClient

NAME = "docker.io"
ALPINE = Repository(NAME, "library/alpine")
LATEST = Tag("latest")
NOTHING = Digest("sha256:" + "0" * 64)
E = TypeVar("E")


class RecordingClient(UpstreamClient):
    """An UpstreamClient that remembers its events, on a clock that the test moves."""

    now: float
    events: list[Event]

    @classmethod
    def at(cls, url: str, *, offline: bool = False, **options: Any) -> RecordingClient:
        events: list[Event] = []
        config = Upstream(url=url, **options)
        client = cls(NAME, config, emit=events.append, clock=lambda: client.now, offline=offline)
        client.now, client.events = 0.0, events
        return client

    def told(self, kind: type[E]) -> list[E]:
        """The events of one kind, in order."""
        return [event for event in self.events if isinstance(event, kind)]

    async def fetch(self, digest: str, offset: int = 0, into: bytearray | None = None) -> bytes:
        """The whole of a blob of library/alpine, from ``offset``; ``into`` keeps what came of a failure."""
        received = bytearray() if into is None else into
        async with self.open_blob(ALPINE, Digest(digest), offset) as body:
            while chunk := await body.read():
                received += chunk
        return bytes(received)


@asynccontextmanager
async def asking(url: str, **options: Any) -> AsyncIterator[RecordingClient]:
    """A client that is closed at the end."""
    client = RecordingClient.at(url, **options)
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def speaking(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any],
) -> AsyncIterator[str]:
    """A server that runs ``talk`` for each connection; its address as ``127.0.0.1:port``."""
    talks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            talks.add(task)
        with suppress(OSError, asyncio.IncompleteReadError):
            await talk(reader, writer)
        writer.transport.abort() if reader.at_eof() else writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await asyncio.gather(*talks, return_exceptions=True)


async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Accept, and send nothing until the client closes the connection."""
    await reader.read(-1)


def saying(response: bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]:
    """Respond to every request with these bytes, and close."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(response)
        await writer.drain()

    return talk
