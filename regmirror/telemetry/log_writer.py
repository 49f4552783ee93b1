"""Lines on their way to an open file: written by a thread, many with one call, in their order."""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

LINES_MAX: Final = 20_000  # lines waiting at most; what comes beyond is dropped and counted
CHARACTERS_MAX: Final = 8 * 1024 * 1024  # of those lines: a path alone may have 16 KiB
GATHER: Final = 0.02  # seconds between two writes under load, so that one call writes many lines
CHUNK: Final = select.PIPE_BUF - 160  # bytes a call, with room for the line about dropped ones
CLOSING: Final = 2.0  # seconds that the last lines may take


class LogWriter:
    """Takes lines until ``close``, and never lets anybody wait who has one.

    Each call writes whole lines, and no more than arrive in one piece should the file be a pipe that
    several processes share (``PIPE_BUF``), unless one line alone is longer. What cannot be written,
    since the disk is full or the reader of the pipe stands still, is dropped;
    ``tell_dropped`` makes a line of how many that were, for when the file takes lines again.
    """

    def __init__(self, descriptor: int, tell_dropped: Callable[[int], str]) -> None:
        self._descriptor, self._tell_dropped = descriptor, tell_dropped
        # Texts alone: objects that wait here would make the garbage collector look at everything
        # again and again, which holds up answers by tens of milliseconds.
        self._lines: deque[str] = deque()
        self._added = self._taken = 0  # characters of all lines so far: by who puts them, by the thread
        self._refused = 0  # lines that found no room; counted by who puts them
        self._lost = 0  # lines that could not be written, less those that were told of
        self._is_torn = False  # the last line in the file lacks its end
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def put(self, line: str) -> None:
        """Have a line written soon, ended by its line feed."""
        waiting = self._added - self._taken
        if len(self._lines) >= LINES_MAX or waiting + len(line) > CHARACTERS_MAX:
            self._refused += 1
            return
        self._added += len(line)
        self._lines.append(line)
        if not self._wake.is_set():
            self._wake.set()

    def close(self) -> None:
        """Return when everything has been written, or cannot be written in time."""
        self._closing.set()
        self._wake.set()
        self._thread.join(CLOSING)

    def _run(self) -> None:
        while not self._closing.is_set() or self._lines:
            self._wake.wait()
            self._wake.clear()  # before looking: what comes from now on sets it again
            self._write_all()
            self._closing.wait(GATHER)

    def _write_all(self) -> None:
        """Write what is waiting, whole lines with each call."""
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
        if dropped := self._refused + self._lost:
            before += self._tell_dropped(dropped).encode()
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
            except BlockingIOError:  # whoever shares the file has made it so
                select.select([], [self._descriptor], [], GATHER)
