"""Sends ranges of files to sockets by ``sendfile``, in threads beside the event loop.

``os.sendfile`` releases the interpreter's lock and copies no bytes through this process, so that
blobs do not delay manifests. The caller's thread sends a short range at once; a sender thread sends
the bytes that do not fit.

``sendfile`` waits for the disk when the bytes are not in the page cache. A sender thread therefore
sends cached bytes only, and loader threads read the others first: a slow disk delays only the
responses that need it. ``server/delivery_monitor.py`` detects clients that stop reading.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from regmirror.blobs.local import count_cached

STEP: Final = 2 * 1024 * 1024  # bytes of one call at most, so that many clients advance evenly
INLINE: Final = 256 * 1024  # bytes of the longest range that the event loop itself sends
PROBE: Final = 1024 * 1024  # bytes for each check of the page cache, which takes the interpreter's lock
LOAD: Final = 1024 * 1024  # bytes that a loader reads at once
LOADERS: Final = 8  # threads


class FileTooShort(OSError):
    """The file ended before the last byte of the range."""


class _Job:
    """The rest of one range. It owns duplicates of both descriptors."""

    __slots__ = ("cached_to", "cancelled", "count", "done", "error", "loop", "offset", "source", "target")

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
        self.cached_to = offset  # end of the bytes that are in the page cache
        self.cancelled = False
        self.error: OSError | None = None

    def is_ready(self) -> bool:
        """Whether the next bytes are in the page cache, as far as the kernel reports it."""
        ahead = self.cached_to - self.offset
        if ahead < min(self.count, STEP):
            self.cached_to += count_cached(self.source, self.cached_to, min(self.count - ahead, STEP), PROBE)
        return self.cached_to > self.offset

    def load(self) -> None:
        """Read the next bytes into the page cache; waits for the disk."""
        try:
            count = len(os.pread(self.source, min(self.count, LOAD), self.offset))
            self.cached_to = self.offset + max(count, 1)  # at the end of the file ``step`` raises
        except OSError as error:
            self.error = error

    def step(self) -> bool:
        """Send the cached bytes that fit now; returns whether the range has been sent."""
        sent = os.sendfile(self.target, self.source, self.offset, min(STEP, self.cached_to - self.offset))
        if sent == 0:
            raise FileTooShort(f"the file ends at {self.offset}, {self.count} bytes early")
        self.offset += sent
        self.count -= sent
        return self.count == 0

    def finish(self, error: BaseException | None) -> None:
        os.close(self.target)
        os.close(self.source)
        with contextlib.suppress(RuntimeError):  # the loop has closed: nothing awaits the result
            self.loop.call_soon_threadsafe(_settle, self.done, error)


def _settle(done: asyncio.Future[None], error: BaseException | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)


class _Thread:
    """A sender thread with its epoll. A job waits until its socket is writable, or for ``loaders``."""

    def __init__(self, name: str, loaders: ThreadPoolExecutor) -> None:
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._loaders = loaders
        self._new: deque[_Job] = deque()
        self._jobs: dict[int, _Job] = {}
        self._loading: set[_Job] = set()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def add(self, job: _Job) -> None:
        self._new.append(job)
        self.wake()

    def wake(self) -> None:
        os.eventfd_write(self._wake, 1)

    def stop(self) -> None:
        self._closing = True
        self.wake()
        self._thread.join()

    def close(self) -> None:
        """Abort the remaining jobs; the thread and the loaders must have ended."""
        for job in {*self._jobs.values(), *self._new, *self._loading}:
            job.finish(ConnectionAbortedError("the server is stopping"))
        self._epoll.close()
        os.close(self._wake)

    def _run(self) -> None:
        while not self._closing:
            for descriptor, _ in self._epoll.poll(-1):
                if descriptor == self._wake:
                    self._take_new()
                elif (job := self._jobs.get(descriptor)) is not None:
                    self._advance(job)  # None: it was cancelled in this round

    def _take_new(self) -> None:
        os.eventfd_read(self._wake)
        while self._new:
            job = self._new.popleft()
            self._loading.discard(job)
            self._jobs[job.target] = job
            self._epoll.register(job.target, select.EPOLLOUT)
            if job.error is not None:
                self._end(job, job.error)
        for job in [job for job in self._jobs.values() if job.cancelled]:
            self._end(job, ConnectionAbortedError("cancelled"))

    def _advance(self, job: _Job) -> None:
        try:
            if not job.is_ready():
                self._load(job)
            elif job.step():
                self._end(job, None)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(job, error)

    def _load(self, job: _Job) -> None:
        """Let a loader read from the disk; it then adds the job again."""
        self._remove(job)
        self._loading.add(job)
        self._loaders.submit(self._load_and_return, job)

    def _load_and_return(self, job: _Job) -> None:
        job.load()
        self.add(job)

    def _end(self, job: _Job, error: BaseException | None) -> None:
        self._remove(job)
        job.finish(error)

    def _remove(self, job: _Job) -> None:
        del self._jobs[job.target]
        self._epoll.unregister(job.target)


class Sender:
    """The sender threads of a process, started on demand; ``close`` them."""

    def __init__(self, threads: int = 1) -> None:
        self._size = threads
        self._threads: list[_Thread] = []
        self._loaders = ThreadPoolExecutor(LOADERS, "loader")
        self._turn = 0

    async def send(self, target: int, source: int, offset: int, count: int) -> None:
        """Send ``count`` bytes of the file ``source`` from ``offset`` to the socket ``target``.

        The socket must not block, and no bytes may be buffered for it. Returns when the kernel has
        all bytes. Raises ConnectionError if the peer has closed the connection, FileTooShort if the
        file ends early. The caller's descriptors stay open, also when this is cancelled.
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
        """Abort all jobs and end the threads."""
        for thread in self._threads:
            thread.stop()
        self._loaders.shutdown(cancel_futures=True)
        for thread in self._threads:
            thread.close()
        self._threads.clear()

    def _next_thread(self) -> _Thread:
        if len(self._threads) < self._size:
            self._threads.append(_Thread(f"sender-{len(self._threads)}", self._loaders))
            return self._threads[-1]
        self._turn = (self._turn + 1) % self._size
        return self._threads[self._turn]


def _try_now(target: int, source: int, offset: int, count: int) -> int:
    """Send a short range if it is in the page cache; returns the number of bytes that fitted."""
    if count > INLINE or count_cached(source, offset, count, PROBE) < count:
        return 0
    try:
        sent = os.sendfile(target, source, offset, count)
    except BlockingIOError:
        return 0
    if sent == 0:
        raise FileTooShort(f"the file ends at {offset}, {count} bytes early")
    return sent
