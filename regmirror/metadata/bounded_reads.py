"""Reads of the database, for which no pull waits long, and the difference between no and no answer.

A read that fails or is late means "unknown", never "absent". A pull then goes on to the upstream.
Where nothing else can be answered than 404, the request has met an unanswered read, and that is
noted in its ``Doubt``, the answer is 503: the content may well be stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from regmirror.errors import MetadataUnavailable

T = TypeVar("T")
READ_PATIENCE: Final = 2.0  # seconds that anybody waits for a read
PING_PATIENCE: Final = 0.25  # seconds in which a database that works answers the smallest question
READS_MAX: Final = 64  # reads in flight, late ones included


@dataclass(slots=True)
class Doubt:
    """Whether a request has met a read that was not answered."""

    is_noted: bool = False


_doubt: ContextVar[Doubt | None] = ContextVar("doubt", default=None)


@contextmanager
def tracking_doubt() -> Iterator[Doubt]:
    """For one request; the work that it starts belongs to it."""
    doubt = Doubt()
    token = _doubt.set(doubt)
    try:
        yield doubt
    finally:
        _doubt.reset(token)


def is_in_doubt() -> bool:
    """Whether this request has met a read that was not answered."""
    doubt = _doubt.get()
    return doubt is not None and doubt.is_noted


def _note_doubt() -> None:
    doubt = _doubt.get()
    if doubt is not None:
        doubt.is_noted = True


class BoundedReads:
    """The reads of one process; ``tell`` is called with each failure, ``ping`` is the smallest read.

    One late read delays nobody else. While the database answers not even a ping, others are not
    tried: else every pull would wait for each of its reads.
    """

    def __init__(
        self, tell: Callable[[Exception], None], ping: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        self._tell, self._ping = tell, ping
        self._slots = asyncio.Semaphore(READS_MAX)
        self._running: set[asyncio.Future[Any]] = set()  # no more than slots
        self._pinging: asyncio.Task[None] | None = None
        self._pinged_at = 0.0

    def __len__(self) -> int:
        return len(self._running)

    @property
    def is_stuck(self) -> bool:
        """Whether the database answers nothing at the moment."""
        return (
            self._pinging is not None and asyncio.get_running_loop().time() - self._pinged_at >= PING_PATIENCE
        )

    async def do(self, question: Coroutine[Any, Any, T]) -> T:
        """The answer; raises MetadataUnavailable if there is none in time."""
        try:
            if await self._may_begin(question):
                answer = self._start(question)
                done, _ = await asyncio.wait({answer}, timeout=READ_PATIENCE)
                if done:
                    return answer.result()
                self._suspect()
        except SQLAlchemyError as error:
            self._tell(error)
        _note_doubt()
        raise MetadataUnavailable

    async def find(self, question: Coroutine[Any, Any, T]) -> T | None:
        """The answer, or None; then what is None may be unknown, which the request's doubt tells."""
        try:
            return await self.do(question)
        except MetadataUnavailable:
            return None

    async def close(self) -> None:
        """Give up the ping; reads end by themselves."""
        if self._pinging is not None:
            self._pinging.cancel()
            await asyncio.wait({self._pinging})

    async def _may_begin(self, question: Coroutine[Any, Any, object]) -> bool:
        """Whether there is a slot for another read in time; closes the question if there is none."""
        may_begin = False
        try:
            if not self.is_stuck:
                async with asyncio.timeout(READ_PATIENCE):
                    may_begin = await self._slots.acquire()
        except TimeoutError:
            self._suspect()
        finally:
            if not may_begin:
                question.close()
        return may_begin

    def _start(self, question: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        answer = asyncio.ensure_future(question)
        self._running.add(answer)
        answer.add_done_callback(self._ended)
        return answer

    def _ended(self, answer: asyncio.Future[Any]) -> None:
        self._running.discard(answer)
        self._slots.release()
        if not answer.cancelled():
            answer.exception()  # nobody may be waiting any more

    def _suspect(self) -> None:
        """A read is late: see whether the database answers at all."""
        self._tell(TimeoutError("the database does not answer"))
        if self._pinging is None:
            self._pinged_at = asyncio.get_running_loop().time()
            self._pinging = asyncio.create_task(self._ping_once())

    async def _ping_once(self) -> None:
        try:
            await self._ping()
        except SQLAlchemyError as error:
            self._tell(error)
        finally:
            self._pinging = None
