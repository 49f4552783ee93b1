"""A source that answers by a script, and a workshop for transfers without an application."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from regmirror.blobs.local import LocalBlobStore
from regmirror.blobs.staging import Staging
from regmirror.downloads.source import Source, Splice
from regmirror.downloads.transfer_context import TransferContext
from regmirror.errors import UpstreamFailed
from regmirror.oci.names import Digest, Repository
from tests.fake_registry import random_bytes
from tests.mirror_fixture import EventLog

DATA = random_bytes(10_000)
DIGEST = Digest.of(DATA)
REPOSITORY = Repository("registry.test", "team/app")
PIECE = 1_000

broken = UpstreamFailed("registry.test", "broke off", reason="truncated")
no_range = UpstreamFailed("registry.test", "sent another part of the blob", reason="range")


@dataclass
class Says:
    """One answer of the upstream.

    data     the whole blob as it is told this time
    stop     where the answer ends
    size     what it says of the whole; None: nothing, -1: the length of ``data``
    error    raised at the end, or instead of an answer if ``refuses``
    whole    it begins at 0, whatever was asked for
    gate     what comes before the end of the body is held back until this is set
    """

    data: bytes = DATA
    stop: int | None = None
    size: int | None = -1
    error: Exception | None = None
    refuses: bool = False
    whole: bool = False
    gate: asyncio.Event | None = None

    @asynccontextmanager
    async def answer(self, offset: int) -> AsyncIterator[ScriptedBody]:
        if self.refuses and self.error:
            raise self.error
        yield ScriptedBody(self, 0 if self.whole else offset)


class ScriptedBody:
    """The bytes of one answer, in pieces."""

    def __init__(self, says: Says, start: int) -> None:
        self.start = start
        self.size = len(says.data) if says.size == -1 else says.size
        stop = len(says.data) if says.stop is None else says.stop
        self._pieces = [says.data[at : min(at + PIECE, stop)] for at in range(start, stop, PIECE)]
        self._says = says

    async def read(self) -> bytes:
        await asyncio.sleep(0)
        if self._pieces:
            return self._pieces.pop(0)
        if self._says.gate:
            await self._says.gate.wait()
        if self._says.error:
            raise self._says.error
        return b""

    async def splice(self, splice: Splice) -> None:
        """There is no socket."""


@dataclass
class Script:
    """Answers one after the other, the last one for ever; ``asked`` are the offsets asked for."""

    answers: list[Says]
    asked: list[int] = field(default_factory=list)
    repository: Repository = REPOSITORY
    read_timeout: float = 30.0

    @property
    def source(self) -> Source:
        return Source(self.repository, self._open, self.read_timeout)

    def _open(self, offset: int):
        self.asked.append(offset)
        says = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return says.answer(offset)


class Bench:
    """A storage directory and what one process works with; several on one root are workers."""

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

    def leave(self, data: bytes, digest: Digest = DIGEST, **note: object) -> None:
        """What a writer that died has left."""
        staged = self.staging.open(digest)
        staged.open_bytes(create=True)
        os.pwrite(staged.descriptor, data, 0)
        staged.write_state(type(staged.read_state())(**note))
        staged.close()

    def staged(self) -> list[str]:
        return sorted(path.name for path in self.staging.directory.iterdir())

    def stored(self, digest: Digest = DIGEST) -> bytes | None:
        path = self.store.path(digest)
        return path.read_bytes() if path.exists() else None
