"""Blobs to sockets by ``sendfile``, in threads beside the event loop.

``os.sendfile`` releases the interpreter's lock and copies nothing through this process, so a
blob that streams costs the loop nothing and delays no manifest. A call that would fill the
socket's buffer at once is made on the caller's thread; only what does not fit goes to a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import threading
import time
from collections import deque
from typing import Final

STEP: Final = 2 * 1024 * 1024  # bytes a call at most: so that many clients advance evenly
INLINE: Final = 256 * 1024  # bytes worth trying on the event loop itself
STALL: Final = 300.0  # seconds without progress until a reader is given up
_TICK: Final = 10.0  # seconds between looks for stalled readers


class FileTooShort(OSError):
    """The file ended before the promised bytes did."""


class _Job:
    """One range on its way; owns its two descriptors, so that nobody else's are ever closed."""

    __slots__ = ("cancelled", "count", "done", "loop", "moved_at", "offset", "source", "target")

    def __init__(self, target: int, source: int, offset: int, count: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self.loop.create_future()
        self.target = os.dup(target)
        try:
            self.source = os.dup(source)
        except OSError:
            os.close(self.target)
            raise
        self.offset, self.count = offset, count
        self.cancelled = False
        self.moved_at = time.monotonic()

    def step(self) -> bool:
        """Send what fits now; true when everything is sent."""
        sent = os.sendfile(self.target, self.source, self.offset, min(self.count, STEP))
        if sent == 0:
            raise FileTooShort(f"the file ends at {self.offset}, {self.count} bytes early")
        self.offset += sent
        self.count -= sent
        self.moved_at = time.monotonic()
        return self.count == 0

    def finish(self, error: BaseException | None) -> None:
        os.close(self.target)
        os.close(self.source)
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
            self.loop.call_soon_threadsafe(_settle, self.done, error)


def _settle(done: asyncio.Future[None], error: BaseException | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)


class _Thread:
    """One thread and its epoll; jobs wait for room in their sockets."""

    def __init__(self, name: str) -> None:
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._new: deque[_Job] = deque()
        self._jobs: dict[int, _Job] = {}
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def add(self, job: _Job) -> None:
        self._new.append(job)
        self.wake()

    def wake(self) -> None:
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        self._closing = True
        self.wake()
        self._thread.join()
        self._epoll.close()
        os.close(self._wake)

    def _run(self) -> None:
        looked_at = time.monotonic()
        while not self._closing:
            for descriptor, _ in self._epoll.poll(_TICK):
                if descriptor == self._wake:
                    self._take_new()
                elif (job := self._jobs.get(descriptor)) is not None:
                    self._advance(job)  # unless it was cancelled in this very round
            if time.monotonic() - looked_at >= _TICK:
                looked_at = time.monotonic()
                self._drop_stalled(looked_at - STALL)
        for job in (*self._jobs.values(), *self._new):
            job.finish(ConnectionAbortedError("the server is stopping"))

    def _take_new(self) -> None:
        os.eventfd_read(self._wake)
        while self._new:
            job = self._new.popleft()
            self._jobs[job.target] = job
            self._epoll.register(job.target, select.EPOLLOUT)
        for job in [job for job in self._jobs.values() if job.cancelled]:
            self._end(job, ConnectionAbortedError("cancelled"))

    def _advance(self, job: _Job) -> None:
        try:
            if job.step():
                self._end(job, None)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(job, error)

    def _drop_stalled(self, before: float) -> None:
        for job in [job for job in self._jobs.values() if job.moved_at < before]:
            self._end(job, ConnectionAbortedError(f"no progress for {STALL:.0f} s"))

    def _end(self, job: _Job, error: BaseException | None) -> None:
        del self._jobs[job.target]
        self._epoll.unregister(job.target)
        job.finish(error)


class Sender:
    """A few threads that send ranges of files; started at the first need, stopped by ``close``."""

    def __init__(self, threads: int = 1) -> None:
        self._size = threads
        self._threads: list[_Thread] = []
        self._turn = 0

    async def send(self, target: int, source: int, offset: int, count: int) -> None:
        """Send ``count`` bytes of the file ``source`` from ``offset`` to the socket ``target``.

        The socket must be non-blocking and nothing may be buffered for it. Returns when the
        kernel has all bytes. Raises ConnectionError when the peer is gone, FileTooShort when
        the file ends early. Cancelling it closes nothing of the caller's.
        """
        sent = _try_now(target, source, offset, count)
        if sent == count:
            return
        job = _Job(target, source, offset + sent, count - sent)
        thread = self._next_thread()
        thread.add(job)
        try:
            await job.done
        except asyncio.CancelledError:
            job.cancelled = True
            thread.wake()
            raise

    def close(self) -> None:
        """Abort what is being sent and end the threads."""
        for thread in self._threads:
            thread.close()
        self._threads.clear()

    def _next_thread(self) -> _Thread:
        if len(self._threads) < self._size:
            self._threads.append(_Thread(f"sender-{len(self._threads)}"))
            return self._threads[-1]
        self._turn = (self._turn + 1) % self._size
        return self._threads[self._turn]


def _try_now(target: int, source: int, offset: int, count: int) -> int:
    if count > INLINE:
        return 0
    try:
        sent = os.sendfile(target, source, offset, count)
    except BlockingIOError:
        return 0
    if sent == 0:
        raise FileTooShort(f"the file ends at {offset}, {count} bytes early")
    return sent
