"""The memory for encrypted bodies, which all downloads of a worker share (B18).

A download that is alone gets large buffers, which are quickest. The more there are, the smaller
the buffers of those that begin.
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
    """What one body has: three buffers of ``size`` bytes."""

    def __init__(self, size: int) -> None:
        self.size, self.is_borrowed = size, True

    def take(self) -> Iterator[memoryview]:
        """New buffers. Pages that the kernel maps go back to it at once, without fragments."""
        return (memoryview(mmap.mmap(-1, self.size)) for _ in range(BUFFERS))


class Pool:
    """How much memory bodies have, and how much the next one gets."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self.borrowed = 0  # bytes

    def borrow(self) -> Buffers:
        """Buffers that take three quarters of what is left at most: there is some for the next body."""
        size, left = LARGEST, self._limit - self.borrowed
        while size > SMALLEST and size * BUFFERS * 4 > left * 3:
            size //= 2
        self.borrowed += size * BUFFERS
        return Buffers(size)

    def give_back(self, buffers: Buffers) -> None:
        """``buffers`` are needed no more. Idempotent."""
        if buffers.is_borrowed:
            buffers.is_borrowed = False
            self.borrowed -= buffers.size * BUFFERS


#: The pool of the worker process.
POOL: Final = Pool()
