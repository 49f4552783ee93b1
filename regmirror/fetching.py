"""From an upstream into whatever takes a blob's bytes: resumed by ``Range``, its length checked.

Content is the same wherever it comes from: where an upstream fails or hangs and somebody wants the
blob from another one, that one brings the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, Protocol

from regmirror.errors import UpstreamError, UpstreamLied, UpstreamResting
from regmirror.names import Repository

PAUSES: Final = (0.1, 0.5, 2.0)  # seconds before each retry that follows one without progress
STALL: Final = 0.5  # seconds without a byte after which another upstream is asked, if there is one
RESTS_MAX: Final = 2  # waits in all for an upstream that is not asked because it keeps failing

Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Moved:
    """What was taken out of a socket: ``count`` bytes, none if the connection has ended.

    The last of them are ``unwritten`` if the file they were for failed with ``error``.
    """

    count: int
    unwritten: bytes = b""
    error: OSError | None = None


#: Moves at most so many bytes that have arrived at a socket into a file; None if none have.
Move = Callable[[int, int], Awaitable[Moved | None]]


class Body(Protocol):
    """What an upstream sends of a blob: from ``start``, of a whole of ``size`` if it told."""

    start: int
    size: int | None

    async def read(self) -> bytes | memoryview:
        """What has arrived, to be used until the next call; empty at the end."""
        ...

    async def splice(self, move: Move) -> Moved | None:
        """Have ``move`` take what has arrived; None if only ``read`` can, and at the end."""
        ...


Open = Callable[[int], AbstractAsyncContextManager[Body]]


FindSize = Callable[[], Awaitable[int | None]]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a blob is fetched from: ``open`` asks for its bytes from an offset on.

    ``find_size`` knows what manifests say, for an upstream that does not tell the size.
    """

    repository: Repository
    open: Open
    find_size: FindSize


class Sink(Protocol):
    """What takes the bytes, in order: a growing file, or one reader."""

    @property
    def offset(self) -> int:
        """Where the next byte belongs."""
        ...

    @property
    def size(self) -> int | None:
        """The whole blob's size, as far as it has been told."""
        ...

    async def begin(self, size: int | None) -> None:
        """The upstream has answered with content, of ``size`` if that is known."""
        ...

    async def append(self, piece: bytes | memoryview) -> None: ...

    async def draw(self, body: Body) -> bool:
        """Take what has arrived of ``body`` without its passing through here; false if there is
        nothing to take like that.
        """
        ...

    async def is_right(self) -> bool:
        """Whether all bytes so far are the whole blob."""
        ...

    def note_resumed(self) -> None:
        """The upstream is about to be asked for the rest."""
        ...

    def take_other(self) -> Source | None:
        """Another upstream of which somebody wants the blob, from now on the one that is asked."""
        ...


@dataclass
class _Retries:
    """How often one upstream is asked again."""

    failures: int = 0
    rests: int = 0

    def pause_after(self, error: UpstreamError, *, has_progressed: bool) -> float:
        """Seconds until the next try; raises the error if there is to be none."""
        if isinstance(error, UpstreamResting) and self.rests < RESTS_MAX:
            self.rests += 1  # it was not asked: until then it may be well again
            return error.retry_after or 0.0
        self.failures = 0 if has_progressed else self.failures + 1
        if self.failures >= len(PAUSES):
            raise error
        return PAUSES[self.failures]


async def fetch(source: Source, sink: Sink, sleep: Sleep) -> None:
    """Ask until everything is here; a try that brought bytes forgives those before it."""
    retries, whole = _Retries(), False
    while True:
        before = sink.offset
        try:
            other = await _try(source, sink, 0 if whole else before)
            if other is None:
                return
        except UpstreamError as error:
            if isinstance(error, UpstreamLied) or error.status < 500:
                raise
            other = sink.take_other()
            if other is None and sink.offset == 0:
                raise
            if other is None and error.reason == "range":
                if await sink.is_right():  # nothing comes from there on: all is here, or ask for all
                    return
                whole = True
            if other is None:
                await sleep(retries.pause_after(error, has_progressed=sink.offset > before))
        if other is not None:
            source, retries, whole = other, _Retries(), False
        sink.note_resumed()


async def _try(source: Source, sink: Sink, offset: int) -> Source | None:
    """Fetch from ``offset`` on, to the end; or give up while nothing comes, and return another
    source to go on with.
    """
    attempt = asyncio.ensure_future(_fetch_from(source, sink, offset))
    try:
        while True:
            seen = sink.offset
            if (await asyncio.wait({attempt}, timeout=STALL))[0]:
                await attempt
                return None
            if sink.offset == seen and (other := sink.take_other()) is not None:
                return other
    finally:
        if not attempt.done():
            attempt.cancel()
            await asyncio.gather(attempt, return_exceptions=True)


async def _fetch_from(source: Source, sink: Sink, offset: int) -> None:
    async with source.open(offset) as body:
        first = await _begin(source, sink, body)
        await _pump(source, sink, body, first)


async def _begin(source: Source, sink: Sink, body: Body) -> asyncio.Future[bytes | memoryview]:
    """Make the sink ready, and read the first piece meanwhile: what has arrived is lost otherwise,
    should the connection break before it is read.
    """
    told = sink.size
    if told is not None and body.size not in (None, told):
        # Clients were promised ``told`` bytes, the last of which is the one to hold back.
        message = f"changed a size from {told} to {body.size}"
        raise UpstreamLied(source.repository.upstream, message, reason="length")
    size = told if body.size is None else body.size
    first = asyncio.ensure_future(body.read())
    try:
        await sink.begin(await source.find_size() if size is None else size)
    except BaseException:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        raise
    return first


async def _pump(source: Source, sink: Sink, body: Body, first: Awaitable[bytes | memoryview]) -> None:
    """From the upstream to the sink, piece after piece.

    What arrives while the sink is busy waits in the connection's bounded buffer: the first bytes
    are taken at once, later pieces grow with the load, and nothing else is held.
    """
    skip, position = sink.offset - body.start, body.start
    piece = await first
    while piece:
        position += len(piece)
        limit = sink.size
        if limit is not None and position > limit:
            message = f"sent more than {limit} bytes"
            raise UpstreamLied(source.repository.upstream, message, reason="length")
        if skip:
            skip, piece = max(0, skip - len(piece)), piece[skip:]
        if piece:
            await sink.append(piece)
        if not skip:
            while await sink.draw(body):
                pass
        piece = await body.read()
