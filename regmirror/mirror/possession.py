"""Proof of possession: an upstream sends a range of a stored blob that the mirror chooses.

A status code, a redirect or a field of a document is only a claim. Bytes that cannot be known without
the blob prove that a repository has it, so nothing else makes stored content accessible to a repository.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from regmirror.blobs.base import Blob
from regmirror.downloads.follower import Follower
from regmirror.errors import BlobUnknown, Unavailable, UpstreamFailed, UpstreamNotFound
from regmirror.metadata.cache import MetadataCache
from regmirror.mirror.cache_status import HIT, MISS, CachedResult
from regmirror.mirror.upstream_access import RequestKey, UpstreamAccess, timeout_error
from regmirror.oci.names import Digest, Repository
from regmirror.singleflight import SingleFlight

SMALL: Final = 64 * 1024  # bytes up to which a whole blob is the sample
LENGTH: Final = 64  # bytes of a sample of a larger blob
ENOUGH: Final = LENGTH  # bytes of a blob in flight that must have arrived before it is sampled
#: Content that everybody has: no bytes, and ``{}``, the config of artifacts that have none (image
#: specification, "Guidance for an Empty Descriptor").
COMMON: Final = frozenset({Digest.of(b""), Digest.of(b"", "sha512"), Digest.of(b"{}")})
PROOFS_MAX: Final = 64  # concurrent proofs of one upstream, each with a sample in memory
SAMPLE_TIMEOUT: Final = 2.0  # seconds until a sample of the blob must be readable
RESPONSE_TIMEOUT: Final = 20.0  # seconds for an upstream to send the bytes of a proof
_WINDOWS: Final = 16  # ranges to choose from
_VARIED: Final = 16  # distinct byte values that make a range impossible to guess


@dataclass(frozen=True, slots=True)
class Sample:
    """``data`` at offset ``start`` of a blob of ``size`` bytes, if its size is known."""

    start: int
    data: bytes
    size: int | None = None

    @property
    def stop(self) -> int:
        return self.start + len(self.data)


class Body(Protocol):
    """A range of a blob from an upstream: from ``start`` on, of ``size`` bytes in all if it states that."""

    start: int
    size: int | None

    async def read(self) -> bytes | memoryview:
        """The next bytes, valid until the next call; empty at the end."""
        ...


#: Requests the bytes from one offset to another.
OpenRange = Callable[[int, int], AbstractAsyncContextManager[Body]]


@dataclass(frozen=True, slots=True)
class Proof:
    """Whether an upstream has a blob; ``sample`` are the bytes that it has sent, if it was requested."""

    is_proven: bool
    sample: Sample | None = None


class Possession:
    """Proves that upstreams have blobs which are stored, or in flight, for other repositories."""

    def __init__(self, metadata_cache: MetadataCache, upstream_access: UpstreamAccess) -> None:
        self._metadata_cache, self._upstream_access = metadata_cache, upstream_access
        self._sampler = Sampler()
        self._proofs: SingleFlight[RequestKey, CachedResult[Proof]] = SingleFlight()
        # Separate, because a proof of bytes in flight does not hold for the bytes that are stored later.
        self._early_proofs: SingleFlight[RequestKey, CachedResult[Proof]] = SingleFlight()
        self._sampling: Counter[RequestKey] = Counter()  # client requests that wait for a sample

    async def close(self) -> None:
        """Cancel every proof."""
        await self._proofs.close()
        await self._early_proofs.close()

    async def prove(self, repository: Repository, digest: Digest, blob: Blob) -> bool:
        """Whether the repository's own upstream proves that it has ``blob``, and records the link.

        False if no sample is readable in time, and for a blob in flight if the bytes differ. Raises
        BlobUnknown if they differ from a verified blob, or another RegistryError.
        """
        key = (repository, digest)
        self._metadata_cache.negative_cache.check(*key, BlobUnknown)
        is_verified = not isinstance(blob, Follower) or blob.is_verified
        flight = self._proofs if is_verified else self._early_proofs
        self._check_pending(flight, key)
        sample = await self._take_sample(repository, digest, blob)
        if sample is None:
            return False

        async def work() -> CachedResult[Proof]:
            return await self._request_proof(repository, digest, sample, is_verified=is_verified)

        proof = (await self._upstream_access.share(flight, key, work, BlobUnknown)).content
        if proof.is_proven and proof.sample is not None and isinstance(blob, Follower) and not is_verified:
            blob.note_sample(proof.sample.start, proof.sample.data)  # maybe that of another client request
        return proof.is_proven

    def _check_pending(self, flight: SingleFlight[RequestKey, CachedResult[Proof]], key: RequestKey) -> None:
        """Raise Unavailable if the upstream has PROOFS_MAX other proofs, or samples for them, pending."""
        if key in flight or key in self._sampling:
            return
        upstream = key[0].upstream
        pending = {other for other in (*flight, *self._sampling) if other[0].upstream == upstream}
        if len(pending) >= PROOFS_MAX:
            message = f"{upstream}: {PROOFS_MAX} proofs of possession are pending; try again"
            raise Unavailable(message, retry_after=2)

    async def _take_sample(self, repository: Repository, digest: Digest, blob: Blob) -> Sample | None:
        """None if nothing is readable in time."""
        key = (repository, digest)
        self._sampling[key] += 1
        try:
            async with asyncio.timeout(SAMPLE_TIMEOUT):
                sample = await self._sampler.take(repository.upstream, digest, blob)
        except TimeoutError:
            return None
        except OSError as error:
            message = f"{digest}: the stored blob cannot be read ({error}); try again"
            raise Unavailable(message, retry_after=10) from error
        finally:
            self._sampling[key] -= 1
            if not self._sampling[key]:
                del self._sampling[key]
        if isinstance(blob, Follower):
            blob.mark_unread()
        return sample

    async def _request_proof(
        self, repository: Repository, digest: Digest, sample: Sample, *, is_verified: bool
    ) -> CachedResult[Proof]:
        if await self._metadata_cache.is_linked(repository, digest):  # by a proof that has just ended
            return CachedResult(Proof(is_proven=True), HIT)
        open_range = partial(self._upstream_access.get_client(repository).open_blob, repository, digest)
        try:
            async with asyncio.timeout(RESPONSE_TIMEOUT):
                is_proven = await sends(open_range, sample)
        except TimeoutError:
            raise timeout_error(repository) from None
        except UpstreamFailed as error:
            if error.reason != "range":
                raise
            is_proven = False  # the upstream's blob is shorter
        if is_proven and is_verified:
            await self._metadata_cache.link(repository, digest)
        elif is_verified:
            message = f"{repository.name}@{digest}: its bytes differ from the stored blob"
            raise UpstreamNotFound(repository.upstream, message, reason="possession")
        return CachedResult(Proof(is_proven, sample), MISS)


class Sampler:
    """Chooses the range of a blob that an upstream has to send.

    The choice depends on a secret of this process, so an upstream can neither predict it nor repeat
    requests until a range comes up that it can guess.
    """

    def __init__(self, secret: bytes | None = None) -> None:
        self._secret = secret or os.urandom(32)

    async def take(self, upstream: str, digest: Digest, blob: Blob) -> Sample:
        """A sample of ``blob``, or of the part that has arrived; empty for an empty blob.

        Raises RegistryError if the blob's bytes never arrive, OSError if they cannot be read.
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
            if len(set(best.data)) >= _VARIED:  # fewer values may be padding, which anybody can guess
                break
        return best

    @staticmethod
    async def _wait(blob: Blob) -> int:
        """How many bytes are readable: at least ENOUGH, or the whole blob."""
        readable, before = await blob.wait_until_readable(0), 0
        while before < readable < ENOUGH and readable != blob.size:
            before, readable = readable, await blob.wait_until_readable(readable)
        return readable

    def _offset(self, upstream: str, digest: Digest, number: int, limit: int) -> int:
        message = f"{number} {upstream} {digest}".encode()
        return int.from_bytes(hmac.digest(self._secret, message, hashlib.sha256)) % (limit + 1)


async def sends(open_range: OpenRange, sample: Sample) -> bool:
    """Whether the upstream sends the bytes of ``sample``, and states no other size than the sample's.

    Of an upstream that ignores ``Range`` and sends the blob from its beginning, the bytes before the
    sample are skipped. Raises UpstreamError if there is no response to compare.
    """
    async with open_range(sample.start, sample.stop) as body:
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
