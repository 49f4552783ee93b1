"""Sources of a blob's bytes: a source, the body that it sends, and the locator that chooses one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, Protocol

from regmirror.oci.names import Digest, Repository

READ_TIMEOUT: Final = 30.0  # seconds

Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Spliced:
    """Bytes taken from a socket: ``count`` of them, 0 if the connection has ended.

    ``error`` is the failure of the target file. The bytes that it did not take are in ``unwritten``.
    """

    count: int
    unwritten: bytes = b""
    error: OSError | None = None


#: Splices bytes of a socket into a file: descriptor of the socket, maximum count; None if none have arrived.
Splice = Callable[[int, int], Awaitable[Spliced | None]]


class Body(Protocol):
    """The body of one response: the blob from offset ``start`` on. ``size`` is the whole blob's, if known."""

    start: int
    size: int | None

    async def read(self) -> bytes | memoryview:
        """Return the bytes that have arrived, valid until the next call; empty at the end."""
        ...

    async def splice(self, splice: Splice, /) -> Spliced | None:
        """Let ``splice`` take the bytes that have arrived; None at the end, and if only ``read`` can."""
        ...


Open = Callable[[int], AbstractAsyncContextManager[Body]]


@dataclass(frozen=True, slots=True)
class Source:
    """A place that sends the blob of ``repository``: ``open`` requests its bytes from an offset on.

    A request that brings no byte for ``read_timeout`` seconds has failed. Bytes prove that the
    repository's upstream has the blob only if ``is_upstream``.
    """

    repository: Repository
    open: Open
    read_timeout: float = READ_TIMEOUT
    is_upstream: bool = True


class SourceLocator(Protocol):
    """Chooses the source that a cold blob is fetched from."""

    async def locate(self, digest: Digest, upstream: Source) -> Source:
        """Return the source to fetch from: ``upstream``, or one whose ``is_upstream`` is false.

        When another source fails, the download continues from ``upstream``.
        """
        ...


class UpstreamLocator:
    """Fetches every blob from the upstream of the repository that was requested."""

    async def locate(self, digest: Digest, upstream: Source) -> Source:
        return upstream
