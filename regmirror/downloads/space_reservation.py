"""Space on disk for one download, reserved before its bytes are written."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from regmirror.blobs.base import InsufficientSpace
from regmirror.oci.names import Digest

STEP_MIN: Final = 256 * 1024  # bytes reserved in advance for a blob of unknown size
STEP_MAX: Final = 16 * 1024 * 1024

#: Makes room for a blob of so many bytes (None: any); raises InsufficientSpace.
Reserve = Callable[[Digest, int | None], Awaitable[None]]


async def reserve_nothing(digest: Digest, size: int | None) -> None:
    """A ``Reserve`` without a limit."""


class SpaceReservation:
    """The bytes that one blob may occupy: all of it, or if its size is unknown a growing limit."""

    def __init__(self, reserve: Reserve, digest: Digest) -> None:
        self._reserve, self._digest = reserve, digest
        self._until = -1
        self._is_whole = False

    def limit(self, size: int | None) -> int | None:
        """Return the offset at which writing must stop; None for no limit.

        It lies one byte past a known size, so that a body that is too long is noticed.
        """
        if not self._is_whole:
            return self._until
        return None if size is None else size + 1

    def covers(self, size: int | None, needed: int) -> bool:
        """Whether ``needed`` bytes of a blob of ``size`` are reserved."""
        return self._is_whole or (size is None and needed <= self._until)

    async def extend(self, size: int | None, needed: int) -> None:
        """Reserve the whole blob, or the first ``needed`` bytes if ``size`` is unknown.

        Raises InsufficientSpace.
        """
        if size is not None:
            await self._reserve(self._digest, size)
            self._is_whole = True
        elif not needed:
            await self._reserve(self._digest, None)
            self._until = 0
        else:
            await self._extend_step(needed)

    async def _extend_step(self, needed: int) -> None:
        """Reserve a step in advance; exactly ``needed`` bytes if there is no room for the step."""
        until = needed + min(max(needed // 8, STEP_MIN), STEP_MAX)
        try:
            await self._reserve(self._digest, until)
        except InsufficientSpace:
            until = needed
            await self._reserve(self._digest, until)
        self._until = until
