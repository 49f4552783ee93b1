"""Fetch a blob from upstream into a sink: resume by ``Range``, check the length, change the source.

A digest names the same content everywhere. When one upstream rejects the request, fails or stalls,
the download continues from the upstream of another repository that is waiting for the same blob.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

from regmirror.downloads.source import Body, Sleep, Source
from regmirror.errors import UpstreamCircuitOpen, UpstreamContentInvalid, UpstreamError, UpstreamTimeout

PAUSES: Final = (0.1, 0.5, 2.0)  # seconds before a retry, by the number of requests in a row without progress
STALL: Final = 0.5  # seconds without a byte after which another source is requested, if there is one
REQUESTS_MAX: Final = 16  # concurrent requests for one blob, after earlier ones failed or stalled
TRICKLE: Final = 64 * 1024  # bytes that make a request which timed out count as progress
CIRCUIT_WAITS_MAX: Final = 2  # waits, in all, for the probe of an open circuit


class Sink(Protocol):
    """Takes the bytes in order: a file, or a pass-through to one reader."""

    @property
    def offset(self) -> int:
        """The position of the next byte."""
        ...

    @property
    def size(self) -> int | None:
        """The size of the whole blob, if a response has stated it."""
        ...

    async def begin(self, size: int | None, source: Source) -> None:
        """Prepare for bytes: ``source`` has responded with content, of ``size`` if it is stated."""
        ...

    async def append(self, piece: bytes | memoryview) -> None: ...

    async def splice_from(self, body: Body) -> int:
        """Splice the bytes of ``body`` that have arrived into the file; 0 if that is not possible."""
        ...

    async def matches_digest(self) -> bool:
        """Whether the bytes so far are the whole blob."""
        ...


class SourcePool(Protocol):
    """The other sources of a blob, and the record of what happened with each."""

    def take_other(self) -> Source | None:
        """Return another source to request now; each once."""
        ...

    def put_back(self, source: Source) -> None:
        """Offer ``source``, which was given up for another one, once more."""
        ...

    def reject(self, source: Source, error: UpstreamError) -> None:
        """Record that ``source`` does not send the blob."""
        ...

    def suspect(self, source: Source) -> None:
        """Record that ``source`` contradicts an earlier response about the blob."""
        ...

    def note_resumed(self) -> None:
        """Count a request for the remaining bytes."""
        ...


class NoOtherSources:
    """The pool of a pass-through, whose reader accepts bytes of its own upstream only."""

    def take_other(self) -> Source | None:
        return None

    def put_back(self, source: Source) -> None: ...

    def reject(self, source: Source, error: UpstreamError) -> None: ...

    def suspect(self, source: Source) -> None: ...

    def note_resumed(self) -> None: ...


@dataclass
class _Retries:
    """Counts the requests to one upstream that brought nothing."""

    failures: int = 0
    circuit_waits: int = 0

    def pause_after(self, error: UpstreamError, *, has_progressed: bool) -> float:
        """Return the seconds until the next request; raises ``error`` when there is none."""
        if isinstance(error, UpstreamCircuitOpen) and self.circuit_waits < CIRCUIT_WAITS_MAX:
            self.circuit_waits += 1  # no request was made, and by then the upstream may have recovered
            return error.retry_after or 0.0
        self.failures = 0 if has_progressed else self.failures + 1
        if self.failures >= len(PAUSES):
            raise error
        return PAUSES[self.failures]


async def fetch(source: Source, sink: Sink, pool: SourcePool, sleep: Sleep) -> None:
    """Request the blob until ``sink`` has all of it. A request that brings bytes resets the retries.

    Raises the UpstreamError of the last source.
    """
    retries, from_start = _Retries(), False
    while True:
        before = sink.offset
        race = _Race(source, sink, pool, from_start=from_start)
        try:
            await race.run()
            return
        except UpstreamError as error:
            if race.last is not source:
                source, retries, from_start = race.last, _Retries(), False
            if is_wrong_content(error):
                pool.suspect(race.last)
                raise
            is_final = isinstance(error, UpstreamContentInvalid) or error.status < 500 or sink.offset == 0
            if not is_final and error.reason == "range":
                if await sink.matches_digest():  # the blob of unknown size is complete
                    return
                from_start = True
            try:
                brought = sink.offset - before
                pause = _pause(retries, error, is_final=is_final, has_progressed=_is_progress(error, brought))
            except UpstreamError:
                pool.reject(source, error)
                raise
            await sleep(pause)
        pool.note_resumed()


def _is_progress(error: UpstreamError, brought: int) -> bool:
    """Whether a failed request brought enough bytes to reset the retries.

    Without the minimum, an upstream that sends a few bytes and stalls would be retried for ever.
    """
    return brought >= (TRICKLE if isinstance(error, UpstreamTimeout) else 1)


def _pause(retries: _Retries, error: UpstreamError, *, is_final: bool, has_progressed: bool) -> float:
    if is_final:
        raise error
    return retries.pause_after(error, has_progressed=has_progressed)


class _Request:
    """One request for the blob. Its body flows into the sink after ``accept``."""

    def __init__(self, source: Source, sink: Sink, offset: int, notify: Callable[[], None]) -> None:
        self.source, self._notify = source, notify
        self.has_response = False
        self._is_accepted = asyncio.Event()
        self.task = asyncio.create_task(self._run(sink, offset))
        self.task.add_done_callback(lambda _: notify())

    async def _run(self, sink: Sink, offset: int) -> None:
        async with self.source.open(offset) as body:
            # Read at once: bytes that have arrived are lost if the connection breaks before they are read.
            first = asyncio.ensure_future(body.read())
            try:
                self.has_response = True
                self._notify()
                await self._is_accepted.wait()
                await _begin(self.source, sink, body)
                await _pump(self.source, sink, body, first)
            finally:
                first.cancel()
                await asyncio.gather(first, return_exceptions=True)

    def accept(self) -> None:
        self._is_accepted.set()


class _Race:
    """Fetches from the first source, and from others when it fails or stalls.

    Clients may name repositories that do not exist. So that these do not delay a source that has
    the blob, the number of concurrent requests doubles with each failure or stall.
    """

    def __init__(self, source: Source, sink: Sink, pool: SourcePool, *, from_start: bool) -> None:
        self._sink, self._pool, self._from_start = sink, pool, from_start
        self._event = asyncio.Event()
        self._width = 1
        self._is_stalled = False
        self._has_timed_out = False  # the last wait ended without an event or a byte
        self._chosen: _Request | None = None  # its bytes flow into the sink
        self._pending = [self._request(source)]  # requests of which no byte is in the sink
        self.last = source  # the source whose bytes were taken, or that failed last

    def _request(self, source: Source) -> _Request:
        offset = 0 if self._from_start else self._sink.offset
        return _Request(source, self._sink, offset, self._event.set)

    @property
    def _running(self) -> list[_Request]:
        return [*self._pending, *([self._chosen] if self._chosen else [])]

    async def run(self) -> None:
        """Return when the sink has everything; raises the error of the last source."""
        try:
            while True:
                await self._wait()
                failures = self._take_failures()
                if self._chosen is not None and self._chosen.task.done():
                    return
                await self._choose()
                if failures:
                    self._widen()
                if self._chosen is None or self._is_stalled:
                    await self._request_others()
                self._report(failures)
        finally:
            await self._give_up(self._running)

    async def _wait(self) -> None:
        """Wait until a request has a response or ends, or STALL seconds."""
        before, self._has_timed_out = self._sink.offset, False
        try:
            async with asyncio.timeout(STALL):
                await self._event.wait()
        except TimeoutError:
            if self._sink.offset == before:
                self._is_stalled = self._has_timed_out = True
                self._widen()
        self._event.clear()
        if self._sink.offset != before:
            self._is_stalled = False

    def _take_failures(self) -> list[tuple[Source, UpstreamError]]:
        """Remove the requests that have failed, and return their errors."""
        failures = []
        for request in self._running:
            if not request.task.done() or (error := request.task.exception()) is None:
                continue
            if request is self._chosen:
                self._chosen = None
            else:
                self._pending.remove(request)
            self.last = request.source
            if not isinstance(error, UpstreamError) or is_wrong_content(error):
                raise error
            failures.append((request.source, error))
        return failures

    async def _choose(self) -> None:
        """Accept the body of a request that has a response, unless another body flows."""
        if self._chosen is not None and not self._is_stalled:
            await self._give_up(self._pending)
            return
        ready = next((request for request in self._pending if request.has_response), None)
        if ready is None:
            return
        self._pending.remove(ready)
        await self._give_up(self._running)
        self._chosen, self._is_stalled, self._width = ready, False, 1
        self.last = ready.source
        ready.accept()

    async def _give_up(self, requests: list[_Request]) -> None:
        """Cancel requests; their sources may be requested again."""
        ending = [*requests]
        for request in ending:
            if request is self._chosen:
                self._chosen = None
            else:
                self._pending.remove(request)
            if not request.task.done():
                self._pool.put_back(request.source)
            request.task.cancel()
        await asyncio.gather(*(request.task for request in ending), return_exceptions=True)

    def _widen(self) -> None:
        self._width = min(2 * self._width, REQUESTS_MAX)

    async def _request_others(self) -> None:
        """Request further sources; at the maximum, in place of the oldest requests."""
        room = self._width - len(self._pending)
        if self._has_timed_out and room <= 0 and self._width == REQUESTS_MAX:
            room = REQUESTS_MAX // 2
        others: list[Source] = []
        while len(others) < room and (other := self._pool.take_other()) is not None:
            others.append(other)
        await self._give_up(self._pending[: max(0, len(self._pending) + len(others) - REQUESTS_MAX)])
        self._pending += [self._request(other) for other in others]

    def _report(self, failures: list[tuple[Source, UpstreamError]]) -> None:
        """Report failures to the pool; raises the last one when no request is left."""
        is_over = self._chosen is None and not self._pending
        for source, error in failures[:-1] if is_over else failures:
            if error.status >= 500 and self._sink.offset:
                self._pool.put_back(source)
            else:
                self._pool.reject(source, error)
        if is_over:
            raise failures[-1][1]


def is_wrong_content(error: Exception) -> bool:
    """Whether the digest or a length was wrong, so that the bytes so far are worthless."""
    return isinstance(error, UpstreamContentInvalid) and error.reason in ("digest", "length")


async def _begin(source: Source, sink: Sink, body: Body) -> None:
    """Prepare the sink; raises UpstreamContentInvalid if the size differs from an earlier response."""
    size = sink.size
    if size is not None and body.size not in (None, size):
        # Clients were promised ``size`` bytes, of which the last one is withheld.
        message = f"changed a size from {size} to {body.size}"
        raise UpstreamContentInvalid(source.repository.upstream, message, reason="length")
    await sink.begin(size if body.size is None else body.size, source)


async def _pump(source: Source, sink: Sink, body: Body, first: Awaitable[bytes | memoryview]) -> None:
    """Copy the body into the sink, piece by piece.

    While the sink is busy, bytes wait in the connection's bounded buffer. So the first bytes are
    taken at once, later pieces grow with the load, and no other memory is used.
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
