"""The receive buffers of encrypted bodies; all downloads of a worker share their memory (B18).

A single download gets large buffers, which are fastest. The more downloads run, the smaller are
the buffers of the next one.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Final

LIMIT: Final = 8 * 1024 * 1024  # bytes of all buffers, the smallest ones excepted
LARGEST: Final = 2 * 1024 * 1024  # bytes
SMALLEST: Final = 64 * 1024  # bytes; each body has these in any case
BUFFERS: Final = 3  # of a body: one being filled, one full, one with the reader


class Buffers:
    """Three buffers of ``size`` bytes, for one body."""

    def __init__(self, size: int) -> None:
        self.size, self.is_borrowed = size, True

    def take(self) -> Iterator[memoryview]:
        """New buffers. Pages that the kernel maps go back to it at once, without fragments."""
        return (memoryview(mmap.mmap(-1, self.size)) for _ in range(BUFFERS))


class Pool:
    """The memory of all bodies, and the size of the next one's buffers."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self.borrowed = 0  # bytes

    def borrow(self) -> Buffers:
        """Borrow buffers of at most three quarters of the memory left, so that the next body gets some."""
        size, left = LARGEST, self._limit - self.borrowed
        while size > SMALLEST and size * BUFFERS * 4 > left * 3:
            size //= 2
        self.borrowed += size * BUFFERS
        return Buffers(size)

    def give_back(self, buffers: Buffers) -> None:
        """Return ``buffers``. Idempotent."""
        if buffers.is_borrowed:
            buffers.is_borrowed = False
            self.borrowed -= buffers.size * BUFFERS


#: The pool of the worker process.
POOL: Final = Pool()
