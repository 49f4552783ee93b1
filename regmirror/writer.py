"""The end of a growing file, written and hashed in bulk threads beside the event loop."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import Executor
from typing import Final

from regmirror.names import Hasher

READ_BACK: Final = 4 * 1024 * 1024  # bytes a read when hashing what an earlier writer left


class Writer:
    """The end of a growing file: what is written is hashed, in order."""

    def __init__(self, descriptor: int, hasher: Hasher, bulk: Executor) -> None:
        self._descriptor, self._bulk = descriptor, bulk
        self.hasher = hasher
        self.offset = 0

    async def read_back(self, size: int) -> None:
        """Hash the ``size`` bytes that are already there."""
        loop = asyncio.get_running_loop()
        while self.offset < size:
            await loop.run_in_executor(self._bulk, self._hash_piece, min(READ_BACK, size - self.offset))

    async def append(self, piece: bytes) -> None:
        """Write and hash a piece in a thread, which is waited for even when this is cancelled."""
        writing = asyncio.get_running_loop().run_in_executor(self._bulk, self._append, piece)
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait([writing])
            raise

    def _append(self, piece: bytes) -> None:
        view = memoryview(piece)
        while view:
            count = os.pwrite(self._descriptor, view, self.offset)
            self.hasher.update(view[:count])
            self.offset += count
            view = view[count:]

    def _hash_piece(self, count: int) -> None:
        piece = os.pread(self._descriptor, count, self.offset)
        if not piece:
            raise OSError("the staged file shrank while it was read back")
        self.hasher.update(piece)
        self.offset += len(piece)
