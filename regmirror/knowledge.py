"""What this process remembers of the database, so that the hot path need not ask it.

Fresh tags, manifests and proven (repository, digest) pairs live in bounded memory; what is
learnt is written through; times of last pull are gathered and written in batches. A database
that fails costs memory of things, never a pull: what cannot be read counts as not known, and
every write may be lost without serving a wrong byte.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from regmirror.errors import BlobUnknown, ManifestUnknown, RegistryError
from regmirror.events import Emit, NotStored
from regmirror.freshness import TagRecord
from regmirror.lru import Lru
from regmirror.manifests import Manifest, NotAManifest, parse_document, references
from regmirror.metadata.store import MetadataStore
from regmirror.names import Digest, Reference, Repository, Tag

T = TypeVar("T")
MANIFEST_BYTES: Final = 16 * 1024 * 1024  # of manifests kept in memory
ENTRIES: Final = 50_000  # tags, rights and sizes kept in memory, of each
MISSING: Final = 10_000  # absent names remembered
DENIED_MAX_AGE: Final = 5.0  # seconds: access may be granted at any time


#: A digest may be no manifest and yet a blob, so what it was asked for as is part of the key.
_Absence = tuple[Repository, Reference, type[RegistryError]]


class Knowledge:
    """Memory in front of ``store``; ``clock`` is monotonic seconds, ``now`` the wall clock."""

    def __init__(
        self,
        store: MetadataStore,
        emit: Emit,
        *,
        missing_max_age: float,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self._emit = emit
        self._missing_max_age = missing_max_age
        self._now, self._clock = now, clock
        self._tags: Lru[tuple[Repository, Tag], TagRecord] = Lru(ENTRIES)
        self._manifests: Lru[Digest, Manifest] = Lru(MANIFEST_BYTES, lambda item: item.size)
        self._held: Lru[tuple[Repository, Digest], bool] = Lru(ENTRIES)
        self._rights: Lru[tuple[Repository, Digest], bool] = Lru(ENTRIES)
        self._sizes: Lru[Digest, int] = Lru(ENTRIES)
        self._missing: Lru[_Absence, tuple[float, RegistryError]] = Lru(MISSING)
        self._pulled_tags: dict[tuple[Repository, Tag], float] = {}
        self._pulled_manifests: dict[tuple[Repository, Digest], float] = {}
        self._pulled_blobs: dict[Digest, float] = {}

    # --- tags and manifests --------------------------------------------------------------

    def recall_tag(self, repository: Repository, tag: Tag) -> TagRecord | None:
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
        """The stored manifest, if the repository holds it.

        That one of its manifests names it is not enough: an upstream may accept an index of
        manifests that it does not have there.
        """
        key = (repository, digest)
        if not self._held.get(key):
            if not await self._read(self.store.holds(repository, digest)):
                return None
            self._held.put(key, True)
        return await self.find_anywhere(digest)

    async def find_anywhere(self, digest: Digest) -> Manifest | None:
        """The stored manifest, whichever repository brought it; the right to it is another matter."""
        manifest = self._manifests.get(digest)
        if manifest is None:
            manifest = await self._read(self.store.find_manifest(digest))
            if manifest is not None:
                self._manifests.put(digest, manifest)
        return manifest

    async def save_manifest(self, repository: Repository, manifest: Manifest, tag: Tag | None = None) -> None:
        """The upstream has just said this manifest (for the tag, if one is given)."""
        self._manifests.put(manifest.digest, manifest)
        self._held.put((repository, manifest.digest), True)
        self._missing.drop((repository, manifest.digest, ManifestUnknown))
        if tag is not None:
            record = TagRecord(manifest.digest, manifest.media_type, manifest.size, self._now())
            self._tags.put((repository, tag), record)
            self._missing.drop((repository, tag, ManifestUnknown))
        try:
            named = references(parse_document(manifest.payload))
        except NotAManifest:
            named = []
        await self._write(self.store.save_manifest(repository, manifest, named, tag))

    async def save_tag(self, repository: Repository, tag: Tag, record: TagRecord) -> None:
        """The upstream has just said what the tag means."""
        self._tags.put((repository, tag), record)
        self._missing.drop((repository, tag, ManifestUnknown))
        await self._write(self.store.save_tag(repository, tag, record))

    async def forget_tag(self, repository: Repository, tag: Tag) -> None:
        self._tags.drop((repository, tag))
        await self._write(self.store.forget_tag(repository, tag))

    # --- lists of what is stored; empty while the database cannot be read -----------------

    async def list_repositories(self) -> list[Repository]:
        return await self._read(self.store.list_repositories()) or []

    async def list_tags(self, repository: Repository) -> list[str]:
        return await self._read(self.store.list_tags(repository)) or []

    async def list_referrers(self, repository: Repository, digest: Digest) -> list[Manifest]:
        return await self._read(self.store.list_referrers(repository, digest)) or []

    # --- rights and sizes ----------------------------------------------------------------

    async def has_right(self, repository: Repository, digest: Digest) -> bool:
        """Whether this content may be served under this repository."""
        key = (repository, digest)
        if self._rights.get(key):
            return True
        proven = await self._read(self.store.has_right(repository, digest))
        if proven:
            self._rights.put(key, True)
        return bool(proven)

    async def confirm(self, repository: Repository, digest: Digest) -> None:
        """The upstream has just confirmed that the repository has this content."""
        self._rights.put((repository, digest), True)
        self._missing.drop((repository, digest, BlobUnknown))
        await self._write(self.store.confirm(repository, digest))

    async def find_size(self, digest: Digest, *, again: bool = False) -> int | None:
        """The size a blob must have, as far as anything stored says.

        ``again`` passes over memory: another worker may know better since.
        """
        size = None if again else self._sizes.get(digest)
        if size is None:
            size = await self._read(self.store.find_size(digest))
            if size is not None:
                self._sizes.put(digest, size)
        return size

    async def save_blob(self, digest: Digest, size: int) -> None:
        """The blob has been verified and stored."""
        self._sizes.put(digest, size)
        await self._write(self.store.save_blob(digest, size))

    async def forget_blob(self, digest: Digest) -> None:
        self._sizes.drop(digest)
        await self._write(self.store.forget_blob(digest))

    # --- what is missing -----------------------------------------------------------------

    def refuse_missing(
        self, repository: Repository, reference: Reference, unknown: type[RegistryError]
    ) -> None:
        """Raise the ``unknown`` that was noted of this name, if that was a moment ago."""
        found = self._missing.get((repository, reference, unknown))
        if found is None:
            return
        until, error = found
        if self._clock() < until:
            raise error.with_traceback(None)
        self._missing.drop((repository, reference, unknown))

    def note_missing(
        self, repository: Repository, reference: Reference, error: RegistryError, *, denied: bool
    ) -> None:
        """The upstream has no such thing, or none for us."""
        age = min(self._missing_max_age, DENIED_MAX_AGE) if denied else self._missing_max_age
        if age > 0:
            self._missing.put((repository, reference, type(error)), (self._clock() + age, error))

    # --- last pulls ----------------------------------------------------------------------

    def note_tag_pull(self, repository: Repository, tag: Tag) -> None:
        self._pulled_tags[(repository, tag)] = self._now()

    def note_manifest_pull(self, repository: Repository, digest: Digest) -> None:
        self._pulled_manifests[(repository, digest)] = self._now()

    def note_blob_pull(self, digest: Digest) -> None:
        self._pulled_blobs[digest] = self._now()

    async def flush_pulls(self) -> None:
        """Write the times gathered since the last flush."""
        tags, self._pulled_tags = self._pulled_tags, {}
        manifests, self._pulled_manifests = self._pulled_manifests, {}
        blobs, self._pulled_blobs = self._pulled_blobs, {}
        if tags or manifests or blobs:
            await self._write(self.store.save_pulls(tags, manifests, blobs))

    async def _read(self, question: Awaitable[T]) -> T | None:
        try:
            return await question
        except SQLAlchemyError as error:
            self._tell_failure(error)
            return None

    async def _write(self, transaction: Awaitable[None]) -> None:
        try:
            await transaction
        except SQLAlchemyError as error:
            self._tell_failure(error)

    def _tell_failure(self, error: SQLAlchemyError) -> None:
        self._emit(NotStored("database", str(getattr(error, "orig", error))))
