"""The heart: what it means to pull through.

A tag may ask its upstream, a digest looks in the store first and is true for ever. What is
requested upstream is requested once for all who wait for it. Storing content does not open it: it is
served under a repository if it was fetched and verified through that repository, or if the
repository's own upstream proves that it has it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

from regmirror.blobs.base import Blob
from regmirror.blobs.local import LocalBlob, LocalBlobStore
from regmirror.downloads.fetcher import Source
from regmirror.downloads.follower import Follower
from regmirror.downloads.registry import Downloads
from regmirror.errors import BlobUnknown, Unavailable, UpstreamFailed, UpstreamNotFound, UpstreamTimeout
from regmirror.metadata.bounded_reads import is_in_doubt
from regmirror.metadata.cache import MetadataCache
from regmirror.mirror.cache_status import COALESCED, HIT, MISS, STORED, CachedResult
from regmirror.mirror.completeness import Completeness
from regmirror.mirror.freshness import FreshnessRules
from regmirror.mirror.possession import COMMON, Sample, Sampler, sends
from regmirror.mirror.resolver import Policy, Resolver
from regmirror.mirror.upstream_access import COLD_DEADLINE, STALE_DEADLINE, Key, UpstreamAccess
from regmirror.oci.manifests import Manifest, ManifestSummary
from regmirror.oci.names import Digest, Reference, Repository, Tag
from regmirror.singleflight import SingleFlight
from regmirror.telemetry.events import BlobRemoved, Emit, VerificationFailed
from regmirror.upstream.client import UpstreamClient

PROOFS_MAX: Final = 64  # proofs of one upstream that are awaited at once, with a sample each
SAMPLE_MAX: Final = 2.0  # seconds until enough of a blob in flight must have arrived to be compared
RESPONSE_MAX: Final = 20.0  # seconds that an upstream may take for a proof, or until a blob flows


@dataclass(frozen=True)
class Parts:
    """What a Mirror is made of; ``now`` is the wall clock that tags age by.

    ``patience`` and ``cold_deadline`` are the seconds a client waits for an upstream with and
    without a stale answer at hand; ``on_missing`` and ``incomplete`` are keys of ``freshness``.
    """

    metadata_cache: MetadataCache
    store: LocalBlobStore
    downloads: Downloads
    upstreams: Mapping[str, UpstreamClient]
    rules: FreshnessRules
    emit: Emit
    offline: bool = False
    now: Callable[[], float] = time.time
    patience: float = STALE_DEADLINE
    cold_deadline: float = COLD_DEADLINE
    on_missing: Literal["forget", "keep"] = "forget"
    incomplete: Literal["refuse", "serve"] = "refuse"


class Mirror:
    """Manifests and blobs of every upstream, from the store when possible."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._metadata_cache = parts.metadata_cache
        self.upstream_access = UpstreamAccess(
            parts.metadata_cache,
            parts.upstreams,
            offline=parts.offline,
            patience=parts.patience,
            cold_deadline=parts.cold_deadline,
        )
        policy = Policy(parts.rules, parts.offline, parts.on_missing, parts.incomplete, parts.now)
        completeness = Completeness(parts.metadata_cache, parts.store)
        self._resolver = Resolver(parts.metadata_cache, self.upstream_access, completeness, policy)
        self._sizes: SingleFlight[Key, CachedResult[int | None]] = SingleFlight()
        # Apart, because a proof about bytes in flight says nothing of those that are stored in the end.
        self._proofs: SingleFlight[Key, CachedResult[bool]] = SingleFlight()
        self._early_proofs: SingleFlight[Key, CachedResult[bool]] = SingleFlight()
        self._sampler = Sampler()

    async def close(self) -> None:
        """End what is being asked of upstreams."""
        await self._resolver.close()
        for flight in (self._sizes, self._proofs, self._early_proofs):
            await flight.close()

    # --- manifests -----------------------------------------------------------------------

    async def manifest(self, repository: Repository, reference: Reference) -> CachedResult[Manifest]:
        """The manifest; raises ManifestUnknown or another RegistryError."""
        if isinstance(reference, Digest):
            answer = await self._resolver.manifest_by_digest(repository, reference)
            self._metadata_cache.note_manifest_pull(repository, reference)
            return answer
        answer = await self._resolver.manifest_by_tag(repository, reference)
        self._metadata_cache.note_tag_pull(repository, reference)
        self._metadata_cache.note_manifest_pull(repository, answer.content.digest)
        return answer

    async def head_manifest(
        self, repository: Repository, reference: Reference
    ) -> CachedResult[ManifestSummary]:
        """What ``manifest`` would tell, without fetching the manifest for it."""
        if isinstance(reference, Digest):
            return await self._resolver.head_by_digest(repository, reference)
        answer = await self._resolver.head_by_tag(repository, reference)
        self._metadata_cache.note_tag_pull(repository, reference)  # how most clients resolve a tag
        return answer

    def replay_manifest(self, repository: Repository, reference: Reference) -> Manifest | None:
        """What ``manifest`` would answer now as a hit, by memory alone; then that pull is noted."""
        held = self._resolver.recall(repository, reference)
        if held is not None:
            if isinstance(reference, Tag):
                self._metadata_cache.note_tag_pull(repository, reference)
            self._metadata_cache.note_manifest_pull(repository, held.digest)
        return held

    def replay_head(self, repository: Repository, reference: Reference) -> ManifestSummary | None:
        """The same for what ``head_manifest`` answers."""
        head = self._resolver.get_cached_head(repository, reference)
        if head is not None and isinstance(reference, Tag):
            self._metadata_cache.note_tag_pull(repository, reference)
        return head

    # --- blobs ---------------------------------------------------------------------------

    async def blob(self, repository: Repository, digest: Digest) -> CachedResult[Blob]:
        """The blob, opened; close it. Raises BlobUnknown or another RegistryError."""
        answer = await self._open_proven(repository, digest)
        if answer is None:
            answer = await self._open_alone(repository, digest)
        self._metadata_cache.note_blob_pull(digest)
        return answer

    async def _open_proven(self, repository: Repository, digest: Digest) -> CachedResult[Blob] | None:
        """The blob; None if nothing can be compared of what arrives for another repository, or if it is
        not what the upstream sends for this one.
        """
        answer, is_proven = await self._open(repository, digest)
        try:
            if is_proven or await self._is_possessed(repository, digest, answer.content):
                return answer
        except BaseException:
            answer.content.close()
            raise
        answer.content.close()
        return None

    async def _open_alone(self, repository: Repository, digest: Digest) -> CachedResult[Blob]:
        """The blob as this repository's own upstream sends it, to this reader alone."""
        with self.upstream_access.mapping_to_unknown((repository, digest), BlobUnknown):
            source = self._source(repository, digest)
            try:
                async with asyncio.timeout(RESPONSE_MAX):
                    follower = await self._parts.downloads.fetch_alone(digest, source)
            except TimeoutError:
                raise UpstreamTimeout(repository.upstream, "is slow to answer", reason="slow") from None
        follower.proves(repository)
        return CachedResult(follower, MISS)

    def _source(self, repository: Repository, digest: Digest) -> Source:
        client = self.upstream_access.upstream(repository)
        return Source(
            repository,
            lambda offset: client.open_blob(repository, digest, offset),
            client.read_timeout,
        )

    def replay_blob(self, repository: Repository, digest: Digest, size: int) -> bytearray | None:
        """The bytes of the blob that ``blob`` would answer with, if memory alone proves the right to
        it, and the kernel holds all of it in memory; then that pull is noted.
        """
        if not self._metadata_cache.get_cached_link(repository, digest, size):
            return None
        try:
            data = self._parts.store.read_cached(digest, size)
        except OSError:  # the ordinary path looks after it
            return None
        if data is not None:
            self._metadata_cache.note_blob_pull(digest)
        return data

    async def _open(self, repository: Repository, digest: Digest) -> tuple[CachedResult[Blob], bool]:
        """The stored blob, or the download to follow; and whether all of the download's bytes come
        from the repository's own upstream, which proves that it has them.
        """
        stored = await self._open_stored(digest)
        if stored is not None:
            return CachedResult(stored, HIT), False
        self._metadata_cache.check_negative_cache(repository, digest, BlobUnknown)
        with self.upstream_access.mapping_to_unknown((repository, digest), BlobUnknown):
            follower, joined = await self._join(digest, self._source(repository, digest))
        cache_status = MISS if follower.is_passing else COALESCED if joined else STORED
        return CachedResult(follower, cache_status), follower.proves(repository)

    async def _join(self, digest: Digest, source: Source) -> tuple[Follower, bool]:
        """Follow the blob's download as soon as its upstream answers, if that is soon enough.

        One that another upstream was asked for is no older than this: it may yet be asked of ours.
        """
        flying = self._parts.downloads.find(digest)
        age = 0.0
        if flying is not None and flying.source.repository.upstream == source.repository.upstream:
            age = asyncio.get_running_loop().time() - flying.began
        return await self.upstream_access.with_deadline(
            source.repository, lambda: self._parts.downloads.join(digest, source), age=age, subject=digest
        )

    async def head_blob(self, repository: Repository, digest: Digest) -> CachedResult[int | None]:
        """The blob's size without its bytes; None if nobody can tell."""
        stored = await self._open_stored(digest)
        if stored is not None:
            try:
                await self._is_possessed(repository, digest, stored)
            finally:
                stored.close()
            return CachedResult(stored.size, HIT)
        return await self.upstream_access.once(
            self._sizes,
            (repository, digest),
            lambda: self._fetch_size(repository, digest),
            BlobUnknown,
        )

    async def _fetch_size(self, repository: Repository, digest: Digest) -> CachedResult[int | None]:
        """What the upstream states: never what a manifest says, which anybody may have written."""
        client = self.upstream_access.upstream(repository)
        size = await client.head_blob(repository, digest)
        return CachedResult(await client.blob_size(repository, digest) if size is None else size, MISS)

    async def _is_possessed(self, repository: Repository, digest: Digest, blob: Blob) -> bool:
        """Whether the repository's own upstream has sent this blob, or proves now that it has it (see
        ``possession``).

        False only of a blob in flight: if another upstream sends it, since what is compared of it may be
        wrong, or be all that this one knows; if nothing of it can be compared; and if the bytes differ.
        Of a stored blob raises BlobUnknown, or what went wrong.
        """
        if isinstance(blob, Follower) and (blob.is_foreign or blob.is_passing):
            return False
        if digest in COMMON or await self._metadata_cache.is_linked(repository, digest):
            return True
        if self._parts.downloads.is_proven(digest, repository):  # but not written down yet
            return True
        self._metadata_cache.check_negative_cache(repository, digest, BlobUnknown)
        is_verified = not isinstance(blob, Follower) or blob.is_verified
        flights = self._proofs if is_verified else self._early_proofs
        awaited = sum(other.upstream == repository.upstream for other, _ in flights)
        if awaited >= PROOFS_MAX and (repository, digest) not in flights:
            raise Unavailable(f"{PROOFS_MAX} proofs by {repository.upstream} are awaited", retry_after=2)
        sample = await self._take_sample(repository, digest, blob)
        if sample is None:
            return False
        answer = await self.upstream_access.once(
            flights,
            (repository, digest),
            lambda: self._prove(repository, digest, sample, is_verified=is_verified),
            BlobUnknown,
        )
        if answer.content and isinstance(blob, Follower) and not is_verified:
            blob.note_sample(sample.start, sample.data)
        return answer.content

    async def _take_sample(self, repository: Repository, digest: Digest, blob: Blob) -> Sample | None:
        """None if nothing comes in time."""
        try:
            async with asyncio.timeout(SAMPLE_MAX):
                sample = await self._sampler.take(repository.upstream, digest, blob)
        except TimeoutError:
            return None
        except OSError as error:
            raise Unavailable(f"the stored blob cannot be read: {error}", retry_after=10) from error
        if isinstance(blob, Follower):
            blob.discard_read_marker()
        return sample

    async def _prove(
        self, repository: Repository, digest: Digest, sample: Sample, *, is_verified: bool
    ) -> CachedResult[bool]:
        """Whether the upstream sends the bytes of ``sample``, written down if those are verified."""
        if await self._metadata_cache.is_linked(repository, digest):  # proven a moment ago
            return CachedResult(content=True, cache_status=HIT)
        client = self.upstream_access.upstream(repository)
        try:
            async with asyncio.timeout(RESPONSE_MAX):
                is_proven = await sends(partial(client.open_blob, repository, digest), sample)
        except TimeoutError:
            raise UpstreamTimeout(repository.upstream, "is slow to answer", reason="slow") from None
        except UpstreamFailed as error:
            if error.reason != "range":
                raise
            is_proven = False  # its blob of this name is shorter, if there is one
        if is_proven and is_verified:
            await self._metadata_cache.link(repository, digest)
        elif is_verified:
            message = f"sent other bytes for {repository.name}@{digest} than are stored"
            raise UpstreamNotFound(repository.upstream, message, reason="possession")
        return CachedResult(is_proven, MISS)

    async def _open_stored(self, digest: Digest) -> LocalBlob | None:
        """The stored file, if it has the size it must have; else it is put aside."""
        try:
            blob = self._parts.store.open(digest)
        except OSError:  # as good as not there: it is fetched again, and replaced if that can be
            return None
        if blob is None:
            return None
        size = await self._metadata_cache.find_size(digest)
        if size is None and blob.size > 0:
            if not is_in_doubt():
                await self._metadata_cache.save_blob(digest, blob.size)  # a file without its row
            return blob
        if blob.size != size:  # another worker may have replaced the file since memory learnt its size
            size = await self._metadata_cache.find_size(digest, again=True) or size
        if blob.size == size or digest == Digest.of(b"", digest.algorithm):
            return blob
        blob.close()
        if not is_in_doubt():
            await self._put_aside(digest, blob.size)
        return None

    async def _put_aside(self, digest: Digest, size: int) -> None:
        await self._parts.store.quarantine(digest)
        await self._metadata_cache.delete_blob(digest)
        self._parts.emit(VerificationFailed("", "blob", digest, "store"))
        self._parts.emit(BlobRemoved(digest, size, "corrupt"))
