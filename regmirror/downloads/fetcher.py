"""From an upstream into whatever takes a blob's bytes: resumed by ``Range``, its length checked.

Content is the same wherever it comes from: where an upstream rejects the request, fails or hangs,
and somebody wants the blob for another repository, that one's upstream brings the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, Protocol

from regmirror.errors import UpstreamCircuitOpen, UpstreamContentInvalid, UpstreamError, UpstreamTimeout
from regmirror.oci.names import Repository

PAUSES: Final = (0.1, 0.5, 2.0)  # seconds before each retry that follows one without progress
STALL: Final = 0.5  # seconds without a byte after which another upstream is asked, if there is one
ASKED_MAX: Final = 16  # sources that are requested from at once, when those before did not deliver
READ_TIMEOUT: Final = 30.0  # seconds; see ``Source``
TRICKLE: Final = 64 * 1024  # bytes that a try which timed out must bring to count as progress
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


@dataclass(frozen=True, slots=True)
class Source:
    """Where a blob is fetched from: ``open`` requests its bytes from an offset on.

    Nothing that lets no byte through for ``read_timeout`` seconds is waited for.
    """

    repository: Repository
    open: Open
    read_timeout: float = READ_TIMEOUT


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

    async def begin(self, size: int | None, source: Source) -> None:
        """The upstream of ``source`` has answered with content, of ``size`` if that is known."""
        ...

    async def append(self, piece: bytes | memoryview) -> None: ...

    async def splice_from(self, body: Body) -> int:
        """Take what has arrived of ``body`` without its passing through here: how many bytes; none
        if there is nothing to take like that.
        """
        ...

    async def matches_digest(self) -> bool:
        """Whether all bytes so far are the whole blob."""
        ...

    def note_resumed(self) -> None:
        """The upstream is about to be asked for the rest."""
        ...

    def take_other(self) -> Source | None:
        """Another source that somebody wants the blob from, to be requested from now."""
        ...

    def put_back(self, source: Source) -> None:
        """``source`` was given up for another one, and may be returned by ``take_other`` once more."""
        ...

    def refuse(self, source: Source, error: UpstreamError) -> None:
        """Nothing comes from ``source``."""
        ...

    def suspect(self, source: Source) -> None:
        """What ``source`` sends does not fit what is known of the blob."""
        ...


@dataclass
class _Retries:
    """How often one upstream is asked again."""

    failures: int = 0
    rests: int = 0

    def pause_after(self, error: UpstreamError, *, has_progressed: bool) -> float:
        """Seconds until the next try; raises the error if there is to be none."""
        if isinstance(error, UpstreamCircuitOpen) and self.rests < RESTS_MAX:
            self.rests += 1  # it was not asked: until then it may be well again
            return error.retry_after or 0.0
        self.failures = 0 if has_progressed else self.failures + 1
        if self.failures >= len(PAUSES):
            raise error
        return PAUSES[self.failures]


async def fetch(source: Source, sink: Sink, sleep: Sleep) -> None:
    """Request until everything is here; a try that brought bytes forgives those before it."""
    retries, whole = _Retries(), False
    while True:
        before = sink.offset
        race = _Race(source, sink, whole=whole)
        try:
            await race.run()
            return
        except UpstreamError as error:
            if race.last is not source:
                source, retries, whole = race.last, _Retries(), False
            if is_wrong_content(error):
                sink.suspect(race.last)
                raise
            is_final = isinstance(error, UpstreamContentInvalid) or error.status < 500 or sink.offset == 0
            if not is_final and error.reason == "range":
                if await sink.matches_digest():  # nothing comes from there on: all is here, or request all
                    return
                whole = True
            try:
                brought = sink.offset - before
                pause = _pause(retries, error, is_final=is_final, has_progressed=_is_progress(error, brought))
            except UpstreamError:
                sink.refuse(source, error)
                raise
            await sleep(pause)
        sink.note_resumed()


def _is_progress(error: UpstreamError, brought: int) -> bool:
    """Whether a try brought enough to forgive those before it.

    An upstream that sends a few bytes and then stalls, time after time, would never be given up.
    """
    return brought >= (TRICKLE if isinstance(error, UpstreamTimeout) else 1)


def _pause(retries: _Retries, error: UpstreamError, *, is_final: bool, has_progressed: bool) -> float:
    if is_final:
        raise error
    return retries.pause_after(error, has_progressed=has_progressed)


class _Try:
    """One request for a blob, whose body flows into the sink once that is wanted."""

    def __init__(self, source: Source, sink: Sink, offset: int, notify: Callable[[], None]) -> None:
        self.source, self._notify = source, notify
        self.has_answered = False
        self._is_wanted = asyncio.Event()
        self.task = asyncio.create_task(self._run(sink, offset))
        self.task.add_done_callback(lambda _: notify())

    async def _run(self, sink: Sink, offset: int) -> None:
        async with self.source.open(offset) as body:
            # At once: what has arrived is lost otherwise, should the connection break before it is read.
            first = asyncio.ensure_future(body.read())
            try:
                self.has_answered = True
                self._notify()
                await self._is_wanted.wait()
                await _begin(self.source, sink, body)
                await _pump(self.source, sink, body, first)
            finally:
                first.cancel()
                await asyncio.gather(first, return_exceptions=True)

    def want(self) -> None:
        self._is_wanted.set()


class _Race:
    """A blob from the first source, or from others if it fails or nothing comes of it.

    Clients that invent names must not delay a source that has the blob: each time a request fails or
    stalls, twice as many sources are requested from at once.
    """

    def __init__(self, source: Source, sink: Sink, *, whole: bool) -> None:
        self._sink, self._whole = sink, whole
        self._event = asyncio.Event()
        self._width = 1
        self._is_stuck = False  # nothing has come for a while
        self._has_waited = False  # for STALL just now, in vain
        self._chosen: _Try | None = None  # whose bytes are taken
        self._asked = [self._try(source)]  # those that have sent nothing yet
        self.last = source  # the one whose bytes were taken, or that failed last

    def _try(self, source: Source) -> _Try:
        offset = 0 if self._whole else self._sink.offset
        return _Try(source, self._sink, offset, self._event.set)

    @property
    def _running(self) -> list[_Try]:
        return [*self._asked, *([self._chosen] if self._chosen else [])]

    async def run(self) -> None:
        """Until everything is here; raises what the last source has failed with."""
        try:
            while True:
                await self._wait()
                failures = self._take_failures()
                if self._chosen is not None and self._chosen.task.done():
                    return
                await self._choose()
                if failures:
                    self._widen()
                if self._chosen is None or self._is_stuck:
                    await self._ask_others()
                self._tell(failures)
        finally:
            await self._end(self._running)

    async def _wait(self) -> None:
        """Until a request has a response or ends, or bytes have been looked for long enough."""
        before, self._has_waited = self._sink.offset, False
        try:
            async with asyncio.timeout(STALL):
                await self._event.wait()
        except TimeoutError:
            if self._sink.offset == before:
                self._is_stuck = self._has_waited = True
                self._widen()
        self._event.clear()
        if self._sink.offset != before:
            self._is_stuck = False

    def _take_failures(self) -> list[tuple[Source, UpstreamError]]:
        """The requests that have failed since the last time, which are over."""
        failures = []
        for one in self._running:
            if not one.task.done() or (error := one.task.exception()) is None:
                continue
            if one is self._chosen:
                self._chosen = None
            else:
                self._asked.remove(one)
            self.last = one.source
            if not isinstance(error, UpstreamError) or is_wrong_content(error):
                raise error
            failures.append((one.source, error))
        return failures

    async def _choose(self) -> None:
        """Take the bytes of a request that has a response, if no others flow."""
        if self._chosen is not None and not self._is_stuck:
            await self._end(self._asked)
            return
        answered = next((one for one in self._asked if one.has_answered), None)
        if answered is None:
            return
        self._asked.remove(answered)
        await self._end(self._running)
        self._chosen, self._is_stuck, self._width = answered, False, 1
        self.last = answered.source
        answered.want()

    async def _end(self, tries: list[_Try]) -> None:
        """Give up requests; their sources may be tried again."""
        ending = [*tries]
        for one in ending:
            if one is self._chosen:
                self._chosen = None
            else:
                self._asked.remove(one)
            if not one.task.done():
                self._sink.put_back(one.source)
            one.task.cancel()
        await asyncio.gather(*(one.task for one in ending), return_exceptions=True)

    def _widen(self) -> None:
        self._width = min(2 * self._width, ASKED_MAX)

    async def _ask_others(self) -> None:
        """Request from those that wait; if too many hang already, in place of the oldest."""
        room = self._width - len(self._asked)
        if self._has_waited and room <= 0 and self._width == ASKED_MAX:
            room = ASKED_MAX // 2
        others: list[Source] = []
        while len(others) < room and (other := self._sink.take_other()) is not None:
            others.append(other)
        await self._end(self._asked[: max(0, len(self._asked) + len(others) - ASKED_MAX)])
        self._asked += [self._try(other) for other in others]

    def _tell(self, failures: list[tuple[Source, UpstreamError]]) -> None:
        """Let each failure be known; raises the last one if nothing else is left."""
        is_over = self._chosen is None and not self._asked
        for source, error in failures[:-1] if is_over else failures:
            if error.status >= 500 and self._sink.offset:
                self._sink.put_back(source)
            else:
                self._sink.refuse(source, error)
        if is_over:
            raise failures[-1][1]


def is_wrong_content(error: Exception) -> bool:
    """Whether bytes or sizes were wrong, so that what has arrived is worth nothing."""
    return isinstance(error, UpstreamContentInvalid) and error.reason in ("digest", "length")


async def _begin(source: Source, sink: Sink, body: Body) -> None:
    """Make the sink ready; UpstreamContentInvalid if the size is another than was told before."""
    told = sink.size
    if told is not None and body.size not in (None, told):
        # Clients were promised ``told`` bytes, the last of which is the one to hold back.
        message = f"changed a size from {told} to {body.size}"
        raise UpstreamContentInvalid(source.repository.upstream, message, reason="length")
    await sink.begin(told if body.size is None else body.size, source)


async def _pump(source: Source, sink: Sink, body: Body, first: Awaitable[bytes | memoryview]) -> None:
    """From the upstream to the sink, piece after piece.

    What arrives while the sink is busy waits in the connection's bounded buffer: the first bytes
    are taken at once, later pieces grow with the load, and nothing else is held.
    """
    skip, position = sink.offset - body.start, body.start
    piece = await first
    while piece:
        position += len(piece)
        _check_length(source, sink, position)
        if skip:
            skip, piece = max(0, skip - len(piece)), piece[skip:]
        if piece:
            await sink.append(piece)
        if not skip:
            while count := await sink.splice_from(body):
                position += count
                _check_length(source, sink, position)
        piece = await body.read()


def _check_length(source: Source, sink: Sink, position: int) -> None:
    limit = sink.size
    if limit is not None and position > limit:
        message = f"sent more than {limit} bytes"
        raise UpstreamContentInvalid(source.repository.upstream, message, reason="length")
