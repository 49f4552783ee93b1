"""Metadata cache: bounded memory in front of the database, so that a hit needs no query.

Tags, manifests, links and sizes are read through and written through; times of last pulls are
collected and written in batches. Database failures never fail a pull: a failed read is a cache
miss, a failed write is dropped, both are bounded in time (``bounded_access.py``). When the database
was replaced (``database_health.py``), the cached rows are written to the new one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Final, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from regmirror.errors import BlobUnknown, ManifestUnknown, MetadataUnavailable
from regmirror.lru import Lru, weigh_texts
from regmirror.metadata.bounded_access import BoundedReads, WriteQueue
from regmirror.metadata.catalogue import Catalogue
from regmirror.metadata.database import ListsBusy
from regmirror.metadata.database_health import DatabaseHealth
from regmirror.metadata.list_queries import CatalogPage
from regmirror.metadata.local_index import LocalIndex
from regmirror.metadata.negative_cache import NegativeCache
from regmirror.metadata.records import TagRecord
from regmirror.metadata.recovery import DatabaseMonitor
from regmirror.metadata.store import MetadataStore, is_storable
from regmirror.oci.manifests import Descriptor, Manifest, NotAManifest, parse_document, references
from regmirror.oci.names import Digest, Repository, Tag
from regmirror.offload import run_by_size
from regmirror.telemetry.events import Emit, NotStored, VerificationFailed

T = TypeVar("T")
MANIFEST_BYTES: Final = 16 * 1024 * 1024  # of cached manifests
CACHE_BYTES: Final = 12 * 1024 * 1024  # of cached tags, links and sizes, of each
DESCRIPTOR_BYTES: Final = 400  # of a descriptor in a queued write
PULLS_MAX: Final = 20_000  # collected times of last pulls, of each kind
LIST_DEADLINE: Final = 5.0  # seconds a caller waits for a list


class MetadataCache:
    """The cache of one process in front of ``store``.

    ``missing_max_age`` is the max age of the negative cache in seconds, ``now`` the wall clock,
    ``clock`` monotonic seconds.
    """

    def __init__(
        self,
        store: MetadataStore,
        emit: Emit,
        *,
        missing_max_age: float,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        monitor: DatabaseMonitor | None = None,
    ) -> None:
        self._catalogue: Catalogue = store
        self._index: LocalIndex = store
        self._emit, self._now = emit, now
        self.health = DatabaseHealth(emit, monitor, self._save_again, clock)
        self._reads = BoundedReads(self.health.report, store.ping)
        self._writes = WriteQueue(self.health.report)
        self.negative_cache = NegativeCache(missing_max_age, clock)
        self._tags: Lru[tuple[Repository, Tag], TagRecord] = Lru(CACHE_BYTES, _weigh_tag)
        self._manifests: Lru[tuple[Repository, Digest], Manifest] = Lru(MANIFEST_BYTES, _weigh_manifest)
        self._links: Lru[tuple[Repository, Digest], bool] = Lru(CACHE_BYTES, _weigh_link)
        self._sizes: Lru[Digest, int] = Lru(CACHE_BYTES, lambda digest, _: weigh_texts(digest))
        self._pulled_tags: dict[tuple[Repository, Tag], float] = {}
        self._pulled_manifests: dict[tuple[Repository, Digest], float] = {}
        self._pulled_blobs: dict[Digest, float] = {}

    # --- tags and manifests --------------------------------------------------------------

    def get_cached_tag(self, repository: Repository, tag: Tag) -> TagRecord | None:
        """Return the cached record; another process may have stored a newer one."""
        return self._tags.get((repository, tag))

    async def find_tag(self, repository: Repository, tag: Tag) -> TagRecord | None:
        """Return the newer of the stored and the cached record, and cache it."""
        record = await self._reads.find(self._catalogue.find_tag(repository, tag))
        cached = self._tags.get((repository, tag))
        if record is None or (cached is not None and cached.checked_at > record.checked_at):
            return cached  # the upstream may have been checked during the read
        self._tags.put((repository, tag), record)
        return record

    def get_cached_manifest(self, repository: Repository, digest: Digest) -> Manifest | None:
        """Return the manifest if it is cached."""
        return self._manifests.get((repository, digest))

    async def find_manifest(self, repository: Repository, digest: Digest) -> Manifest | None:
        """Return the manifest if the repository's own upstream has sent it.

        A reference from another manifest of the repository is not enough: an upstream may accept
        an index of manifests that it does not have. A stored manifest that does not match its
        digest is deleted, so that it is fetched again (B99).
        """
        key = (repository, digest)
        manifest = self._manifests.get(key)
        if manifest is None:
            manifest = await self._reads.find(self._catalogue.find_manifest(repository, digest))
            if manifest is not None and Digest.of(manifest.payload, digest.algorithm) != digest:
                self._emit(VerificationFailed("", "manifest", digest, "store"))
                await self._writes.write(self._catalogue.delete_manifest(digest))
                return None
            if manifest is not None:
                self._manifests.put(key, manifest)
        return manifest

    async def save_manifest(self, repository: Repository, manifest: Manifest, tag: Tag | None = None) -> None:
        """Save a manifest that the upstream has just sent; with ``tag``, the tag names it."""
        descriptors = await run_by_size(manifest.size, _parse_references, manifest)
        self._manifests.put((repository, manifest.digest), manifest)
        self.negative_cache.drop(repository, manifest.digest, ManifestUnknown)
        record = TagRecord(manifest.digest, manifest.media_type, manifest.size, self._now())
        if tag is not None:
            self._put_tag(repository, tag, record)
        if is_storable(manifest, descriptors):
            size = manifest.size + len(descriptors) * DESCRIPTOR_BYTES
            transaction = self._catalogue.save_manifest(repository, manifest, descriptors, tag)
            await self._writes.write(transaction, size)
            return
        detail = f"manifest too large to store: {manifest.size} bytes, {len(descriptors)} references"
        self._emit(NotStored("quota", detail))
        if tag is not None:
            await self._writes.write(self._catalogue.save_tag(repository, tag, record))

    async def save_tag(self, repository: Repository, tag: Tag, record: TagRecord) -> None:
        """Save a tag as the upstream has just reported it."""
        self._put_tag(repository, tag, record)
        await self._writes.write(self._catalogue.save_tag(repository, tag, record))

    async def delete_tag(self, repository: Repository, tag: Tag) -> None:
        """Delete a tag that the upstream does not have."""
        self._tags.drop((repository, tag))
        await self._writes.write(self._catalogue.delete_tag(repository, tag))

    def _put_tag(self, repository: Repository, tag: Tag, record: TagRecord) -> None:
        self._tags.put((repository, tag), record)
        self.negative_cache.drop(repository, tag, ManifestUnknown)

    # --- lists; an empty list is a result, so that a failed read raises MetadataUnavailable --

    async def list_repositories(self, page: CatalogPage) -> list[str]:
        """Return one page of repository names as the catalog shows them."""
        return await self._read_list(self._catalogue.list_catalog(page))

    async def list_tags(
        self, repository: Repository, *, last: str | None = None, limit: int | None = None
    ) -> list[str]:
        """Return the stored tags in order: at most ``limit`` after ``last``."""
        return await self._read_list(self._catalogue.list_tags(repository, last=last, limit=limit))

    async def list_referrers(self, repository: Repository, digest: Digest) -> list[Manifest]:
        """Return the stored manifests whose ``subject`` is ``digest``."""
        return await self._read_list(self._catalogue.list_referrers(repository, digest))

    async def _read_list(self, query: Coroutine[Any, Any, list[T]]) -> list[T]:
        try:
            async with asyncio.timeout(LIST_DEADLINE):
                return await query
        except ListsBusy as error:
            raise MetadataUnavailable from error
        except (SQLAlchemyError, TimeoutError) as error:
            self.health.report(error)
            raise MetadataUnavailable from error

    # --- links and sizes -----------------------------------------------------------------

    async def is_linked(self, repository: Repository, digest: Digest) -> bool:
        """Whether the repository's upstream has sent the blob or proven that it has it."""
        key = (repository, digest)
        if self._links.get(key):
            return True
        is_linked = await self._reads.find(self._catalogue.is_linked(repository, digest))
        if is_linked:
            self._links.put(key, True)
        return bool(is_linked)

    async def count_unlinked(self, repository: Repository, digests: Collection[Digest]) -> int:
        """Return how many of these blobs are not linked to the repository."""
        uncached = [digest for digest in digests if not self._links.get((repository, digest))]
        if not uncached:
            return 0
        linked = await self._reads.find(self._catalogue.find_links(repository, uncached))
        return len(uncached) - len(linked or ())

    def get_cached_link(self, repository: Repository, digest: Digest, size: int) -> bool:
        """Whether the cache has the link of this blob, and this as its size."""
        return self._links.get((repository, digest)) is not None and self._sizes.get(digest) == size

    async def link(self, repository: Repository, digest: Digest) -> None:
        """Link a blob that the repository's upstream has just sent or proven to have."""
        self._put_link(repository, digest)
        await self._writes.write(self._catalogue.link(repository, digest))

    async def find_size(self, digest: Digest, *, bypass_cache: bool = False) -> int | None:
        """Return the size of a blob in the store; ``bypass_cache`` reads the row, which another
        worker may have changed.
        """
        size = None if bypass_cache else self._sizes.get(digest)
        if size is None:
            size = await self._reads.find(self._index.find_size(digest))
            if size is not None:
                self._sizes.put(digest, size)
        return size

    async def save_blob(self, digest: Digest, size: int, linked_to: Collection[Repository] = ()) -> None:
        """Save a blob that was verified and stored, and link it to these repositories."""
        self._sizes.put(digest, size)
        for repository in linked_to:
            self._put_link(repository, digest)
        await self._writes.write(self._catalogue.save_blob(digest, size, linked_to))

    async def delete_blob(self, digest: Digest) -> None:
        """Delete the row of a blob whose file does not exist."""
        self._sizes.drop(digest)
        await self._writes.write(self._index.delete_blob(digest))

    def _put_link(self, repository: Repository, digest: Digest) -> None:
        self._links.put((repository, digest), True)
        self.negative_cache.drop(repository, digest, BlobUnknown)

    # --- all of the cache ----------------------------------------------------------------

    def invalidate_all(self) -> None:
        """Drop every entry, because another process has removed content."""
        for entries in self._by_kind().values():
            entries.clear()
        self.negative_cache.clear()

    def lookups(self) -> dict[str, tuple[int, int]]:
        """Return hits and misses of each kind of entry since this process started."""
        return {kind: (entries.hits, entries.misses) for kind, entries in self._by_kind().items()}

    def _by_kind(self) -> dict[str, Lru[Any, Any]]:
        """Keys are label values of a metric."""
        return {
            "tags": self._tags,
            "manifests": self._manifests,
            "rights": self._links,
            "sizes": self._sizes,
        }

    async def close(self) -> None:
        """Write what can still be written."""
        await self.health.close()
        await self._reads.close()
        await self.flush_pulls()
        await self._writes.close()

    async def _save_again(self) -> None:
        """Write the cached rows to a new database."""
        for (repository, _), manifest in self._manifests.items():
            descriptors = await run_by_size(manifest.size, _parse_references, manifest)
            transaction = self._catalogue.save_manifest(repository, manifest, descriptors)
            await self._writes.write(transaction, manifest.size)
        for repository, digest in [key for key, _ in self._links.items()]:
            await self._writes.write(self._catalogue.link(repository, digest))
        for (repository, tag), record in self._tags.items():
            await self._writes.write(self._catalogue.save_tag(repository, tag, record))

    # --- last pulls ----------------------------------------------------------------------

    def note_tag_pull(self, repository: Repository, tag: Tag) -> None:
        """Note that the tag was pulled now, to be written by ``flush_pulls``."""
        if len(self._pulled_tags) < PULLS_MAX:
            self._pulled_tags[(repository, tag)] = self._now()

    def note_manifest_pull(self, repository: Repository, digest: Digest) -> None:
        """Note that the manifest was pulled now, to be written by ``flush_pulls``."""
        if len(self._pulled_manifests) < PULLS_MAX:
            self._pulled_manifests[(repository, digest)] = self._now()

    def note_blob_pull(self, digest: Digest) -> None:
        """Note that the blob was pulled now, to be written by ``flush_pulls``."""
        if len(self._pulled_blobs) < PULLS_MAX:
            self._pulled_blobs[digest] = self._now()

    async def flush_pulls(self) -> None:
        """Write the times noted since the last flush."""
        tags, self._pulled_tags = self._pulled_tags, {}
        manifests, self._pulled_manifests = self._pulled_manifests, {}
        blobs, self._pulled_blobs = self._pulled_blobs, {}
        if tags or manifests or blobs:
            await self._writes.write(self._catalogue.save_pulls(tags, manifests, blobs))


def _parse_references(manifest: Manifest) -> list[Descriptor]:
    try:
        return references(parse_document(manifest.payload))
    except NotAManifest:
        return []


def _weigh_tag(key: tuple[Repository, Tag], record: TagRecord) -> int:
    repository, tag = key
    texts = (repository.upstream, repository.name, tag, record.digest, record.media_type)
    return weigh_texts(*texts, record.previous or "")


def _weigh_manifest(key: tuple[Repository, Digest], manifest: Manifest) -> int:
    return manifest.size + weigh_texts(key[0].upstream, key[0].name, key[1], manifest.media_type)


def _weigh_link(key: tuple[Repository, Digest], _: bool) -> int:
    repository, digest = key
    return weigh_texts(repository.upstream, repository.name, digest)
