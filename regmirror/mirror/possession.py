"""Proof that an upstream has a stored blob: it sends a part of the blob that the mirror chooses.

A status code, a redirect or a field of a document is a claim. Only bytes that cannot be known without
having the blob prove that a repository has it, so nothing else opens stored content to a repository.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, Protocol

from regmirror.blobs.base import Blob
from regmirror.oci.names import Digest

SMALL: Final = 64 * 1024  # bytes up to which a blob is compared as a whole
LENGTH: Final = 64  # bytes compared of a larger one
ENOUGH: Final = LENGTH  # bytes that must have arrived of a blob in flight before it is compared
#: Content that everybody has: no bytes, and ``{}``, the config of artifacts that have none (image
#: specification, "Guidance for an Empty Descriptor").
COMMON: Final = frozenset({Digest.of(b""), Digest.of(b"", "sha512"), Digest.of(b"{}")})
_WINDOWS: Final = 16  # windows to choose from
_VARIED: Final = 16  # distinct byte values in a window that nobody can guess


@dataclass(frozen=True, slots=True)
class Sample:
    """Bytes of a stored blob and where they stand in it; the size of the whole, if that is known."""

    start: int
    data: bytes
    size: int | None = None

    @property
    def stop(self) -> int:
        return self.start + len(self.data)


class Body(Protocol):
    """A part of a blob as an upstream sends it, from ``start`` on, of a whole of ``size`` if it says so."""

    start: int
    size: int | None

    async def read(self) -> bytes | memoryview:
        """Bytes to be used until the next call; empty at the end."""
        ...


#: Requests the bytes from one offset to another.
Open = Callable[[int, int], AbstractAsyncContextManager[Body]]


class Sampler:
    """Chooses which bytes of a blob an upstream has to send.

    The choice depends on a secret of this process: an upstream can neither foresee it nor, by having
    itself asked again and again, wait for a window that it can guess.
    """

    def __init__(self, secret: bytes | None = None) -> None:
        self._secret = secret or os.urandom(32)

    async def take(self, upstream: str, digest: Digest, blob: Blob) -> Sample:
        """A sample of ``blob``, of which only the beginning may have arrived; empty for an empty blob.

        Raises RegistryError if the blob's bytes never come, OSError if they cannot be read.
        """
        readable = await self._wait(blob)
        if readable <= SMALL:
            return Sample(0, await _read(blob, 0, readable), blob.size)
        best = Sample(0, b"")
        for number in range(_WINDOWS):
            start = self._offset(upstream, digest, number, readable - LENGTH)
            sample = Sample(start, await _read(blob, start, start + LENGTH), blob.size)
            if len(set(sample.data)) > len(set(best.data)):
                best = sample
            if len(set(best.data)) >= _VARIED:  # else padding, which is zeros to everybody
                break
        return best

    @staticmethod
    async def _wait(blob: Blob) -> int:
        """How many bytes can be read now: at least ENOUGH, or all there are."""
        readable, before = await blob.wait_until_readable(0), 0
        while before < readable < ENOUGH and readable != blob.size:
            before, readable = readable, await blob.wait_until_readable(readable)
        return readable

    def _offset(self, upstream: str, digest: Digest, number: int, limit: int) -> int:
        message = f"{number} {upstream} {digest}".encode()
        return int.from_bytes(hmac.digest(self._secret, message, hashlib.sha256)) % (limit + 1)


async def sends(open_part: Open, sample: Sample) -> bool:
    """Whether the upstream sends the bytes of ``sample``, of a blob that is not of another size.

    An upstream that ignores ranges sends the blob from its beginning: what comes before the sample
    is skipped, and the request ends after it. Raises UpstreamError if there is no response to compare.
    """
    async with open_part(sample.start, sample.stop) as body:
        if not sample.data:
            return False
        if None not in (body.size, sample.size) and body.size != sample.size:
            return False
        position = body.start
        while position < sample.stop:
            piece = bytes(await body.read())
            if not piece:
                return False
            first, last = max(position, sample.start), min(position + len(piece), sample.stop)
            expected = sample.data[first - sample.start : max(last - sample.start, 0)]
            if first < last and piece[first - position : last - position] != expected:
                return False
            position += len(piece)
    return True


async def _read(blob: Blob, start: int, stop: int) -> bytes:
    pieces: AsyncIterator[bytes] = blob.read(start, stop)
    return b"".join([piece async for piece in pieces])
