"""What every download works with: the store, its threads, and what to call when it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Literal

from regmirror.blobs.base import InsufficientSpace
from regmirror.blobs.local import LocalBlobStore
from regmirror.blobs.staging import Staging
from regmirror.downloads.fetcher import Sleep
from regmirror.oci.names import Digest, Repository
from regmirror.telemetry.events import Emit

STEP_MIN: Final = 256 * 1024  # bytes reserved beyond what has come of a blob of unknown size
STEP_MAX: Final = 16 * 1024 * 1024

#: Why a blob is not kept, as metrics count it.
Reason = Literal["disk", "quota", "stalled"]
Reserve = Callable[[Digest, int | None], Awaitable[None]]
Record = Callable[[Digest, int, Collection[Repository]], Awaitable[None]]


async def _reserve_nothing(digest: Digest, size: int | None) -> None:
    """There is always room."""


@dataclass(frozen=True)
class TransferContext:
    """What every transfer works with.

    ``record`` is called for each adopted blob, with the repositories whose upstreams brought all of
    it or proved that they have it; ``bulk`` are the threads that write and hash. ``reserve`` is called
    for room before bytes are written, with as many as the blob will have by then; it raises
    InsufficientSpace.
    """

    staging: Staging
    store: LocalBlobStore
    record: Record
    emit: Emit
    bulk: ThreadPoolExecutor
    sleep: Sleep = asyncio.sleep
    reserve: Reserve = _reserve_nothing


class Allowance:
    """The bytes that one blob may have on disk: all of it, or where its size is not known some more
    than have come.
    """

    def __init__(self, reserve: Reserve, digest: Digest) -> None:
        self._reserve, self._digest = reserve, digest
        self._until = -1
        self._is_whole = False

    def limit(self, size: int | None) -> int | None:
        """Where writing has to stop at the latest; one byte too many shows that a size is wrong."""
        if not self._is_whole:
            return self._until
        return None if size is None else size + 1

    def is_enough(self, size: int | None, needed: int) -> bool:
        return self._is_whole or (size is None and needed <= self._until)

    async def extend(self, size: int | None, needed: int) -> None:
        """Have room for the whole blob, or for the first ``needed`` bytes; raises InsufficientSpace."""
        if size is not None:
            await self._reserve(self._digest, size)
            self._is_whole = True
        elif not needed:
            await self._reserve(self._digest, None)
            self._until = 0
        else:
            await self._extend_step(needed)

    async def _extend_step(self, needed: int) -> None:
        """Some more than is needed now; just that, if there is no room for more."""
        until = needed + min(max(needed // 8, STEP_MIN), STEP_MAX)
        try:
            await self._reserve(self._digest, until)
        except InsufficientSpace:
            until = needed
            await self._reserve(self._digest, until)
        self._until = until
