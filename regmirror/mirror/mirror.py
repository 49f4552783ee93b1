"""Blobs: opened from the store, or fetched once for all clients that request them.

A stored blob is served under a repository only if that repository's own upstream has sent all of it,
or proves that it has it (``possession.py``).
"""

from __future__ import annotations

import asyncio

from regmirror.blobs.base import Blob, BlobStore, StoredBlob
from regmirror.downloads.follower import Follower
from regmirror.downloads.registry import Downloads
from regmirror.downloads.source import Source
from regmirror.errors import BlobUnknown
from regmirror.metadata.bounded_access import has_failed_read
from regmirror.metadata.cache import MetadataCache
from regmirror.mirror.cache_status import COALESCED, HIT, MISS, STORED, CachedResult
from regmirror.mirror.possession import COMMON, RESPONSE_TIMEOUT, Possession
from regmirror.mirror.upstream_access import RequestKey, UpstreamAccess, timeout_error
from regmirror.oci.names import Digest, Repository
from regmirror.singleflight import SingleFlight
from regmirror.telemetry.events import BlobRemoved, Emit, VerificationFailed


class Mirror:
    """The blobs of every upstream."""

    def __init__(
        self,
        *,
        metadata_cache: MetadataCache,
        store: BlobStore,
        downloads: Downloads,
        upstream_access: UpstreamAccess,
        emit: Emit,
    ) -> None:
        self._metadata_cache, self._store, self._downloads = metadata_cache, store, downloads
        self._upstream_access, self._emit = upstream_access, emit
        self._possession = Possession(metadata_cache, upstream_access)
        self._sizes: SingleFlight[RequestKey, CachedResult[int | None]] = SingleFlight()

    async def close(self) -> None:
        """Cancel every upstream request that this object has started."""
        await self._sizes.close()
        await self._possession.close()

    async def get_blob(self, repository: Repository, digest: Digest) -> CachedResult[Blob]:
        """The blob, opened; the caller closes it. Raises BlobUnknown or another RegistryError."""
        stored = await self._open_stored(digest)
        result: CachedResult[Blob]
        if stored is not None:
            result = CachedResult(stored, HIT)
        else:
            result = await self._join_download(repository, digest)
        if not await self._may_serve(repository, digest, result.content):
            result = await self._fetch_alone(repository, digest)
        self._metadata_cache.note_blob_pull(digest)
        return result

    def read_cached_blob(self, repository: Repository, digest: Digest, size: int) -> bytearray | None:
        """The bytes of a stored blob of ``size`` bytes, and notes the pull.

        None unless memory knows that the repository has a link to it, and all of it is in the page cache.
        """
        if not self._metadata_cache.get_cached_link(repository, digest, size):
            return None
        try:
            data = self._store.read_cached(digest, size)
        except OSError:  # ``get_blob`` handles it
            return None
        if data is not None:
            self._metadata_cache.note_blob_pull(digest)
        return data

    async def head_blob(self, repository: Repository, digest: Digest) -> CachedResult[int | None]:
        """The blob's size; None if the upstream does not state it. Raises as ``get_blob`` does."""
        stored = await self._open_stored(digest)
        if stored is not None:
            try:
                if await self._is_possessed(repository, digest, stored):
                    return CachedResult(stored.size, HIT)
            finally:
                stored.close()

        async def work() -> CachedResult[int | None]:
            # Never the size of a manifest's descriptor, which anybody may have written.
            client = self._upstream_access.get_client(repository)
            size = await client.head_blob(repository, digest)
            return CachedResult(await client.blob_size(repository, digest) if size is None else size, MISS)

        return await self._upstream_access.share(self._sizes, (repository, digest), work, BlobUnknown)

    # --- stored files ----------------------------------------------------------------------

    async def _open_stored(self, digest: Digest) -> StoredBlob | None:
        """The stored file if it has its recorded size; one of another size is quarantined."""
        try:
            blob = self._store.open(digest)
        except OSError:  # fetched again, and replaced if possible
            return None
        if blob is None:
            return None
        size = await self._metadata_cache.find_size(digest)
        if size is None and blob.size > 0:
            if not has_failed_read():
                await self._metadata_cache.save_blob(digest, blob.size)  # a file without its row
            return blob
        if blob.size != size:  # another worker may have replaced the file since memory learnt its size
            size = await self._metadata_cache.find_size(digest, bypass_cache=True) or size
        if blob.size == size or digest == Digest.of(b"", digest.algorithm):
            return blob
        blob.close()
        if not has_failed_read():
            await self._quarantine(digest, blob.size)
        return None

    async def _quarantine(self, digest: Digest, size: int) -> None:
        await self._store.quarantine(digest)
        await self._metadata_cache.delete_blob(digest)
        self._emit(VerificationFailed("", "blob", digest, "store"))
        self._emit(BlobRemoved(digest, size, "corrupt"))

    # --- access ----------------------------------------------------------------------------

    async def _may_serve(self, repository: Repository, digest: Digest, blob: Blob) -> bool:
        """Whether the repository may serve ``blob``; closes it if not, and on errors."""
        may_serve = False
        try:
            if isinstance(blob, Follower) and blob.proves(repository):
                may_serve = True
            else:
                may_serve = await self._is_possessed(repository, digest, blob)
        finally:
            if not may_serve:
                blob.close()
        return may_serve

    async def _is_possessed(self, repository: Repository, digest: Digest, blob: Blob) -> bool:
        """Whether the repository's own upstream has sent this blob, or proves now that it has it.

        A blob in flight from another upstream may be wrong, and what it is compared with may be all
        that this repository's upstream has: no proof is possible. Raises as ``Possession.prove``.
        """
        if isinstance(blob, Follower) and (blob.is_foreign or blob.is_passed_through):
            return False
        if digest in COMMON or await self._metadata_cache.is_linked(repository, digest):
            return True
        if self._downloads.is_proven(digest, repository):  # the link is about to be recorded
            return True
        return await self._possession.prove(repository, digest, blob)

    # --- downloads -------------------------------------------------------------------------

    async def _join_download(self, repository: Repository, digest: Digest) -> CachedResult[Blob]:
        """Follow the blob's download, started if there is none, once its upstream has responded."""
        self._metadata_cache.negative_cache.check(repository, digest, BlobUnknown)
        with self._upstream_access.mapping_to_unknown((repository, digest), BlobUnknown):
            source = self._source(repository, digest)
            # Before ``with_deadline``, which may call ``join`` again for the download that it has started.
            existed = self._downloads.find(digest) is not None
            follower, joined = await self._upstream_access.with_deadline(
                repository,
                lambda: self._downloads.join(digest, source),
                age=self._download_age(repository, digest),
                subject=digest,
            )
        if follower.is_passed_through:
            return CachedResult(follower, MISS)
        return CachedResult(follower, COALESCED if existed and joined else STORED)

    def _download_age(self, repository: Repository, digest: Digest) -> float:
        """Seconds since the blob was requested from the repository's own upstream; 0 if it was not."""
        download = self._downloads.find(digest)
        if download is None or download.repository.upstream != repository.upstream:
            return 0.0
        return asyncio.get_running_loop().time() - download.began

    async def _fetch_alone(self, repository: Repository, digest: Digest) -> CachedResult[Blob]:
        """The blob as the repository's own upstream sends it, for this reader, not stored."""
        with self._upstream_access.mapping_to_unknown((repository, digest), BlobUnknown):
            source = self._source(repository, digest)
            try:
                async with asyncio.timeout(RESPONSE_TIMEOUT):
                    follower = await self._downloads.fetch_alone(digest, source)
            except TimeoutError:
                raise timeout_error(repository) from None
        follower.proves(repository)
        return CachedResult(follower, MISS)

    def _source(self, repository: Repository, digest: Digest) -> Source:
        client = self._upstream_access.get_client(repository)
        return Source(
            repository,
            lambda offset: client.open_blob(repository, digest, offset),
            client.read_timeout,
        )
