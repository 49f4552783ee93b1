"""A thread that writes log lines to a file descriptor: in order, many lines with one system call."""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

LINES_MAX: Final = 20_000  # lines in the queue; further ones are dropped and counted
CHARACTERS_MAX: Final = 8 * 1024 * 1024  # in the queue; one path may have 16 KiB
GATHER: Final = 0.02  # seconds between two writes under load, so that one call writes many lines
CHUNK: Final = select.PIPE_BUF - 160  # bytes of one call, less the line about dropped lines
CLOSING: Final = 2.0  # seconds to write the last lines


class LogWriter:
    """Queues lines and writes them in a thread until ``close``; ``put`` never blocks.

    Each call writes whole lines and at most ``PIPE_BUF`` bytes, unless a single line is longer: a
    write of that size to a pipe is atomic (POSIX), so that processes can share the pipe. Lines are
    dropped while the disk is full or nobody reads the pipe. ``format_dropped`` makes the line that
    reports their number, which is written when the file accepts lines again.
    """

    def __init__(self, descriptor: int, format_dropped: Callable[[int], str]) -> None:
        self._descriptor, self._format_dropped = descriptor, format_dropped
        # Plain strings: queued objects would make the garbage collector run full collections, each
        # of which delays responses by tens of milliseconds.
        self._lines: deque[str] = deque()
        self._added = self._taken = 0  # characters queued (event loop) and written (thread)
        self._rejected = 0  # lines dropped because the queue was full; counted by ``put``
        self._lost = 0  # lines that could not be written and are not yet reported
        self._is_torn = False  # the last line in the file is incomplete
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def put(self, line: str) -> None:
        """Queue ``line``, which ends with a line feed; drop it if the queue is full."""
        waiting = self._added - self._taken
        if len(self._lines) >= LINES_MAX or waiting + len(line) > CHARACTERS_MAX:
            self._rejected += 1
            return
        self._added += len(line)
        self._lines.append(line)
        if not self._wake.is_set():
            self._wake.set()

    def close(self) -> None:
        """Write the queued lines and stop; returns after ``CLOSING`` seconds at the latest."""
        self._closing.set()
        self._wake.set()
        self._thread.join(CLOSING)

    def _run(self) -> None:
        while not self._closing.is_set() or self._lines:
            self._wake.wait()
            self._wake.clear()  # before the queue is read: a later ``put`` sets it again
            self._write_all()
            self._closing.wait(GATHER)

    def _write_all(self) -> None:
        """Empty the queue, whole lines with each call."""
        chunk, count = bytearray(), 0
        while self._lines:
            text = self._lines.popleft()
            self._taken += len(text)
            line = text.encode()
            if chunk and len(chunk) + len(line) > CHUNK:
                self._write(bytes(chunk), count)
                chunk, count = bytearray(), 0
            chunk += line
            count += 1
        if chunk:
            self._write(bytes(chunk), count)

    def _write(self, chunk: bytes, lines: int) -> None:
        before = b"\n" if self._is_torn else b""
        if dropped := self._rejected + self._lost:
            before += self._format_dropped(dropped).encode()
        data = before + chunk
        written = 0
        try:
            while written < len(data):
                written += self._write_some(data[written:])
        except OSError:
            self._lost += lines
            self._is_torn = self._is_torn if written == 0 else written < len(data)
            return
        self._is_torn = False
        self._lost -= dropped

    def _write_some(self, data: bytes) -> int:
        while True:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:  # another process may set the shared file to non-blocking
                select.select([], [self._descriptor], [], GATHER)
