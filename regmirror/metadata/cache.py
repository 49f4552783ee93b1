"""What this process remembers of the database, so that the hot path need not ask it.

Fresh tags, manifests and proven (repository, digest) pairs live in bounded memory; what is
learnt is written through; times of last pull are gathered and written in batches. A database
that fails costs memory of things, never a pull that the upstream can answer: what cannot be read
is unknown (``bounded_access.py``), every write may be lost without serving a wrong byte, and nobody waits
long for either. A database that is gone or damaged is replaced while running, and told again what
is in memory.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Final, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from regmirror.errors import BlobUnknown, ManifestUnknown, MetadataUnavailable, RegistryError
from regmirror.lru import Lru, weigh_texts
from regmirror.metadata.bounded_access import BoundedReads, Transaction, WriteQueue
from regmirror.metadata.database import ListsBusy
from regmirror.metadata.list_queries import CatalogPage
from regmirror.metadata.negative_cache import NegativeCache
from regmirror.metadata.records import TagRecord
from regmirror.metadata.recovery import DatabaseMonitor, RecoveryFailed, looks_damaged
from regmirror.metadata.store import MetadataStore, is_storable
from regmirror.oci.manifests import Descriptor, Manifest, NotAManifest, parse_document, references
from regmirror.oci.names import Digest, Reference, Repository, Tag
from regmirror.offload import run_by_size
from regmirror.telemetry.events import Emit, NotStored, VerificationFailed

T = TypeVar("T")
MANIFEST_BYTES: Final = 16 * 1024 * 1024  # of manifests kept in memory
CACHE_BYTES: Final = 12 * 1024 * 1024  # of tags, held manifests, rights and sizes in memory, of each
DENIED_MAX_AGE: Final = 5.0  # seconds: access may be granted at any time
DESCRIPTOR_BYTES: Final = 400  # of a descriptor that is to be written
PULLS_MAX: Final = 20_000  # times of last pull that are gathered, of each kind
LIST_DEADLINE: Final = 5.0  # seconds that anybody waits for a list
EXAMINATION_INTERVAL: Final = 5.0  # seconds between two examinations of a database that looks damaged


class MetadataCache:
    """Memory in front of ``store``; ``clock`` is monotonic seconds, ``now`` the wall clock."""

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
        self.store = store
        self._monitor = monitor
        self._writes = WriteQueue(self._tell_failure)
        self._reads = BoundedReads(self._tell_failure, store.ping)
        self._suspected_at = -EXAMINATION_INTERVAL
        self._examination: asyncio.Task[None] | None = None
        self._emit = emit
        self.missing_max_age = missing_max_age  # seconds; changes when the configuration is reloaded
        self._now, self._clock = now, clock
        self._tags: Lru[tuple[Repository, Tag], TagRecord] = Lru(CACHE_BYTES, _weigh_tag)
        self._manifests: Lru[tuple[Repository, Digest], Manifest] = Lru(MANIFEST_BYTES, _weigh_manifest)
        self._links: Lru[tuple[Repository, Digest], bool] = Lru(CACHE_BYTES, _weigh_pair)
        self._sizes: Lru[Digest, int] = Lru(CACHE_BYTES, lambda digest, _: weigh_texts(digest))
        self._missing = NegativeCache(clock)
        self._pulled_tags: dict[tuple[Repository, Tag], float] = {}
        self._pulled_manifests: dict[tuple[Repository, Digest], float] = {}
        self._pulled_blobs: dict[Digest, float] = {}

    # --- tags and manifests --------------------------------------------------------------

    def get_cached_tag(self, repository: Repository, tag: Tag) -> TagRecord | None:
        """What memory says; another process may have asked the upstream since."""
        return self._tags.get((repository, tag))

    async def find_tag(self, repository: Repository, tag: Tag) -> TagRecord | None:
        """What the database says, for the next time in memory."""
        record = await self._read(self.store.find_tag(repository, tag))
        newest = self._tags.get((repository, tag))
        if record is None or (newest is not None and newest.checked_at > record.checked_at):
            return newest  # the upstream was asked while the database was
        self._tags.put((repository, tag), record)
        return record

    async def find_manifest(self, repository: Repository, digest: Digest) -> Manifest | None:
        """The stored manifest, if the repository's own upstream has sent it there.

        That one of its manifests names it is not enough: an upstream may accept an index of
        manifests that it does not have there. A row whose bytes have changed is deleted, so that
        the manifest is fetched again (B99).
        """
        key = (repository, digest)
        manifest = self._manifests.get(key)
        if manifest is None:
            manifest = await self._read(self.store.find_manifest(repository, digest))
            if manifest is not None and Digest.of(manifest.payload, digest.algorithm) != digest:
                await self._delete_corrupt(digest)
                return None
            if manifest is not None:
                self._manifests.put(key, manifest)
        return manifest

    def get_cached_manifest(self, repository: Repository, digest: Digest) -> Manifest | None:
        """What ``find_manifest`` would return, if memory tells it."""
        return self._manifests.get((repository, digest))

    async def _delete_corrupt(self, digest: Digest) -> None:
        self._emit(VerificationFailed("", "manifest", digest, "store"))
        await self._write(self.store.delete_manifest(digest))

    async def save_manifest(self, repository: Repository, manifest: Manifest, tag: Tag | None = None) -> None:
        """The upstream has just said this manifest (for the tag, if one is given)."""
        named = await run_by_size(manifest.size, _named_by, manifest)
        self._manifests.put((repository, manifest.digest), manifest)
        self._missing.drop(repository, manifest.digest, ManifestUnknown)
        record = TagRecord(manifest.digest, manifest.media_type, manifest.size, self._now())
        if tag is not None:
            self._tags.put((repository, tag), record)
            self._missing.drop(repository, tag, ManifestUnknown)
        if is_storable(manifest, named):
            size = manifest.size + len(named) * DESCRIPTOR_BYTES
            await self._write(self.store.save_manifest(repository, manifest, named, tag), size)
            return
        self._emit(NotStored("quota", f"a manifest of {manifest.size} bytes names {len(named)} items"))
        if tag is not None:
            await self._write(self.store.save_tag(repository, tag, record))

    async def save_tag(self, repository: Repository, tag: Tag, record: TagRecord) -> None:
        """The upstream has just said what the tag means."""
        self._tags.put((repository, tag), record)
        self._missing.drop(repository, tag, ManifestUnknown)
        await self._write(self.store.save_tag(repository, tag, record))

    async def delete_tag(self, repository: Repository, tag: Tag) -> None:
        self._tags.drop((repository, tag))
        await self._write(self.store.delete_tag(repository, tag))

    # --- lists of what is stored; MetadataUnavailable while the database cannot be read ----

    async def list_repositories(self, page: CatalogPage) -> list[str]:
        """Their names as the catalog has them."""
        return await self._list(self.store.list_catalog(page))

    async def list_tags(
        self, repository: Repository, *, last: str | None = None, limit: int | None = None
    ) -> list[str]:
        return await self._list(self.store.list_tags(repository, last=last, limit=limit))

    async def list_referrers(self, repository: Repository, digest: Digest) -> list[Manifest]:
        return await self._list(self.store.list_referrers(repository, digest))

    # --- rights and sizes ----------------------------------------------------------------

    async def is_linked(self, repository: Repository, digest: Digest) -> bool:
        """Whether the repository's upstream has sent this blob or proven that it has it."""
        key = (repository, digest)
        if self._links.get(key):
            return True
        proven = await self._read(self.store.is_linked(repository, digest))
        if proven:
            self._links.put(key, True)
        return bool(proven)

    async def count_unlinked(self, repository: Repository, digests: Collection[Digest]) -> int:
        """How many of these blobs the repository's upstream has neither sent nor proven to have."""
        unknown = [digest for digest in digests if not self._links.get((repository, digest))]
        if not unknown:
            return 0
        proven = await self._read(self.store.find_links(repository, unknown))
        return len(unknown) - len(proven or ())

    def get_cached_link(self, repository: Repository, digest: Digest, size: int) -> bool:
        """Whether memory says that this content may be served there, and that it has that size."""
        return self._links.get((repository, digest)) is not None and self._sizes.get(digest) == size

    async def link(self, repository: Repository, digest: Digest) -> None:
        """The repository's upstream has just sent this blob, or proven that it has it."""
        self._note_link(repository, digest)
        await self._write(self.store.link(repository, digest))

    def _note_link(self, repository: Repository, digest: Digest) -> None:
        self._links.put((repository, digest), True)
        self._missing.drop(repository, digest, BlobUnknown)

    async def find_size(self, digest: Digest, *, bypass_cache: bool = False) -> int | None:
        """The size of the stored blob.

        ``again`` passes over memory: another worker may know better since.
        """
        size = None if bypass_cache else self._sizes.get(digest)
        if size is None:
            size = await self._read(self.store.find_size(digest))
            if size is not None:
                self._sizes.put(digest, size)
        return size

    async def save_blob(self, digest: Digest, size: int, linked_to: Collection[Repository] = ()) -> None:
        """The blob has been verified and stored; the upstreams of ``linked_to`` have sent all of it, or
        proven that they have it.
        """
        self._sizes.put(digest, size)
        for repository in linked_to:
            self._note_link(repository, digest)
        await self._write(self.store.save_blob(digest, size, linked_to))

    async def delete_blob(self, digest: Digest) -> None:
        self._sizes.drop(digest)
        await self._write(self.store.delete_blob(digest))

    # --- what is missing -----------------------------------------------------------------

    def check_negative_cache(
        self, repository: Repository, reference: Reference, unknown: type[RegistryError]
    ) -> None:
        """Raise the ``unknown`` that was noted of this name, if that was a moment ago."""
        self._missing.check(repository, reference, unknown)

    def cache_missing(
        self, repository: Repository, reference: Reference, error: RegistryError, *, denied: bool
    ) -> None:
        """The upstream has no such thing, or none for us."""
        age = min(self.missing_max_age, DENIED_MAX_AGE) if denied else self.missing_max_age
        if age > 0:
            self._missing.note(repository, reference, error, denied=denied, max_age=age)

    def invalidate_all(self) -> None:
        """Something was taken away behind our back: the database knows better than memory."""
        memories: tuple[Lru[Any, Any], ...] = (
            self._tags,
            self._manifests,
            self._links,
            self._sizes,
        )
        for memory in memories:
            memory.clear()
        self._missing.clear()

    def lookups(self) -> dict[str, tuple[int, int]]:
        """How often each memory had what was looked for since this process began, and had not."""
        memories: dict[str, Lru[Any, Any]] = {
            "tags": self._tags,
            "manifests": self._manifests,
            "rights": self._links,
            "sizes": self._sizes,
        }
        return {name: (memory.hits, memory.misses) for name, memory in memories.items()}

    def clear_negative_cache(self) -> None:
        """Ask again for everything that was absent or refused."""
        self._missing.clear()

    # --- last pulls ----------------------------------------------------------------------

    def note_tag_pull(self, repository: Repository, tag: Tag) -> None:
        if len(self._pulled_tags) < PULLS_MAX:
            self._pulled_tags[(repository, tag)] = self._now()

    def note_manifest_pull(self, repository: Repository, digest: Digest) -> None:
        if len(self._pulled_manifests) < PULLS_MAX:
            self._pulled_manifests[(repository, digest)] = self._now()

    def note_blob_pull(self, digest: Digest) -> None:
        if len(self._pulled_blobs) < PULLS_MAX:
            self._pulled_blobs[digest] = self._now()

    async def flush_pulls(self) -> None:
        """Write the times gathered since the last flush."""
        tags, self._pulled_tags = self._pulled_tags, {}
        manifests, self._pulled_manifests = self._pulled_manifests, {}
        blobs, self._pulled_blobs = self._pulled_blobs, {}
        if tags or manifests or blobs:
            await self._write(self.store.save_pulls(tags, manifests, blobs))

    # --- the database ------------------------------------------------------------------

    async def check_database(self, *, is_suspect: bool = False) -> None:
        """Go on with the database that is there now, or with a new one if there is none or, where
        it ``is_suspect``, if it is damaged. To be called every few seconds.
        """
        if self._monitor is None:
            return
        try:
            if await self._monitor.check(is_suspect=is_suspect):
                await self._save_again()
        except RecoveryFailed as error:
            self._tell_failure(error)

    async def close(self) -> None:
        """Write what is still to be written, as far as the database lets it."""
        if self._examination is not None:
            self._examination.cancel()
            await asyncio.wait({self._examination})
        await self._reads.close()
        await self.flush_pulls()
        await self._writes.close()

    async def _save_again(self) -> None:
        """Another database: tell it what is in memory, which else it would not learn."""
        for repository, manifest in [(key[0], item) for key, item in self._manifests.items()]:
            named = await run_by_size(manifest.size, _named_by, manifest)
            await self._write(self.store.save_manifest(repository, manifest, named), manifest.size)
        for repository, digest in [key for key, _ in self._links.items()]:
            await self._write(self.store.link(repository, digest))
        for (repository, tag), record in self._tags.items():
            await self._write(self.store.save_tag(repository, tag, record))

    async def _read(self, question: Coroutine[Any, Any, T]) -> T | None:
        """The answer; None, and the request is in doubt, if there is none in time."""
        return await self._reads.find(question)

    async def _list(self, question: Coroutine[Any, Any, T]) -> T:
        """The answer; raises MetadataUnavailable if there is none, since an empty list is an answer."""
        try:
            async with asyncio.timeout(LIST_DEADLINE):
                return await question
        except ListsBusy as error:
            raise MetadataUnavailable from error
        except (SQLAlchemyError, TimeoutError) as error:
            self._tell_failure(error)
            raise MetadataUnavailable from error

    async def _write(self, transaction: Transaction, size: int = 0) -> None:
        await self._writes.write(transaction, size)

    def _tell_failure(self, error: Exception) -> None:
        message = str(getattr(error, "orig", error))
        self._emit(NotStored("database", message))
        if looks_damaged(message) and self._clock() >= self._suspected_at + EXAMINATION_INTERVAL:
            self._suspected_at = self._clock()
            self._examination = asyncio.create_task(self.check_database(is_suspect=True))


def _named_by(manifest: Manifest) -> list[Descriptor]:
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


def _weigh_pair(key: tuple[Repository, Digest], _: bool) -> int:
    repository, digest = key
    return weigh_texts(repository.upstream, repository.name, digest)
