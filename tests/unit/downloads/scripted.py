"""Sources that respond by a script, and a transfer context without an application."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from regmirror.blobs import base as blobs
from regmirror.blobs.base import Blob
from regmirror.blobs.local import LocalBlobStore
from regmirror.blobs.staging import DownloadState, Staging
from regmirror.downloads.registry import Downloads
from regmirror.downloads.source import Body, Source, Splice
from regmirror.downloads.transfer_context import TransferContext
from regmirror.errors import UpstreamFailed
from regmirror.oci.names import Digest, Repository
from regmirror.telemetry.events import NotStored
from tests.fake_registry import random_bytes
from tests.mirror_fixture import EventLog

DATA = random_bytes(10_000)
DIGEST = Digest.of(DATA)
REPOSITORY = Repository("registry.test", "team/app")
PIECE = 1_000
FULL = OSError(28, "No space left on device")
OpenDownloads = Callable[..., Downloads]

broken = UpstreamFailed("registry.test", "broke off", reason="truncated")
no_range = UpstreamFailed("registry.test", "sent another part of the blob", reason="range")


@dataclass
class PlannedResponse:
    """One response of the upstream.

    data     the whole blob in this response
    stop     where the response ends
    size     the stated size; None: not stated, -1: the length of ``data``
    error    raised at the end, or instead of a response if ``refuses``
    whole    it begins at 0, whichever offset was requested
    gate     the end of the body waits for this event
    """

    data: bytes = DATA
    stop: int | None = None
    size: int | None = -1
    error: Exception | None = None
    refuses: bool = False
    whole: bool = False
    gate: asyncio.Event | None = None

    def release(self) -> None:
        """Let the body end."""
        assert self.gate is not None
        self.gate.set()

    @asynccontextmanager
    async def open(self, offset: int) -> AsyncIterator[ScriptedBody]:
        if self.refuses and self.error:
            raise self.error
        yield ScriptedBody(self, 0 if self.whole else offset)


class ScriptedBody:
    """The body of one response, in pieces."""

    def __init__(self, response: PlannedResponse, start: int) -> None:
        self.start = start
        self.size = len(response.data) if response.size == -1 else response.size
        stop = len(response.data) if response.stop is None else response.stop
        self._pieces = [response.data[at : min(at + PIECE, stop)] for at in range(start, stop, PIECE)]
        self._reply = response

    async def read(self) -> bytes:
        await asyncio.sleep(0)
        if self._pieces:
            return self._pieces.pop(0)
        if self._reply.gate:
            await self._reply.gate.wait()
        if self._reply.error:
            raise self._reply.error
        return b""

    async def splice(self, splice: Splice) -> None:
        """There is no socket."""


@dataclass
class Script:
    """Responses one after the other, the last one for ever; ``requested`` are the requested offsets."""

    replies: list[PlannedResponse]
    requested: list[int] = field(default_factory=list)
    repository: Repository = REPOSITORY
    read_timeout: float = 30.0
    gate: asyncio.Event | None = None  # responses wait for it

    @property
    def source(self) -> Source:
        return Source(self.repository, self._open, self.read_timeout)

    @asynccontextmanager
    async def _open(self, offset: int) -> AsyncIterator[Body]:
        self.requested.append(offset)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if self.gate is not None:
            await self.gate.wait()
        async with reply.open(offset) as body:
            yield body


async def read_all(blob: Blob, start: int = 0, into: bytearray | None = None) -> bytes:
    """Everything from ``start``, as it becomes readable; ``into`` keeps the bytes before a failure."""
    position, received = start, bytearray() if into is None else into
    while (limit := await blob.wait_until_readable(position)) > position:
        pieces = [piece async for piece in blob.read(position, limit)]
        assert all(0 < len(piece) <= blobs.PIECE for piece in pieces)
        received += b"".join(pieces)
        position = limit
        if position == blob.size:
            break
    return bytes(received)


def refuse_staging(monkeypatch: pytest.MonkeyPatch, bench: Bench, error: OSError = FULL) -> None:
    """Let no staged file be opened."""

    def refuse(digest: Digest) -> None:
        raise error

    monkeypatch.setattr(bench.staging, "open", refuse)


def assert_nothing_stored(bench: Bench, reason: str = "disk", count: int = 1) -> None:
    """No file and no row, and ``count`` events with the reason."""
    assert bench.staged() == []
    assert bench.stored() is None
    assert bench.recorded == []
    assert [event.reason for event in bench.events.of(NotStored)] == [reason] * count


class Bench:
    """A storage directory and the parts of one process; several on one root are workers."""

    def __init__(self, root: Path, bulk: ThreadPoolExecutor) -> None:
        self.events = EventLog()
        self.recorded: list[tuple[Digest, int]] = []
        self.proven: list[set[Repository]] = []
        self.pauses: list[float] = []
        self.store = LocalBlobStore(root)
        self.staging = Staging(root / "staging")
        self.store.prepare()
        self.staging.prepare()
        self.context = TransferContext(
            staging=self.staging,
            store=self.store,
            record=self._record,
            emit=self.events,
            bulk=bulk,
            sleep=self._sleep,
        )

    async def _record(self, digest: Digest, size: int, proven_for: Collection[Repository]) -> None:
        self.recorded.append((digest, size))
        self.proven.append(set(proven_for))

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0.001)

    def leave(self, data: bytes, digest: Digest = DIGEST, **note: Any) -> None:
        """Leave the files of a writer that died."""
        staged = self.staging.open(digest)
        staged.open_bytes(create=True)
        os.pwrite(staged.descriptor, data, 0)
        staged.write_state(replace(DownloadState(), **note))
        staged.close()

    def staged(self) -> list[str]:
        return sorted(path.name for path in self.staging.directory.iterdir())

    def stored(self, digest: Digest = DIGEST) -> bytes | None:
        path = self.store.path(digest)
        return path.read_bytes() if path.exists() else None
