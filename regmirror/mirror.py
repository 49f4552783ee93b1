"""The heart: what it means to pull through.

A tag may ask its upstream, a digest looks in the store first and is true for ever. What is
asked upstream is asked once, however many wait for it. Having the bytes is not having the
right to them: content is served under a repository if a manifest of that repository
references it or its upstream has confirmed it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from regmirror.asking import Asking, Key
from regmirror.blobs.base import Blob
from regmirror.blobs.local import LocalBlob, LocalBlobStore
from regmirror.downloads import Downloads
from regmirror.errors import (
    BlobUnknown,
    ManifestUnknown,
    UpstreamError,
    UpstreamNotFound,
)
from regmirror.events import BlobRemoved, Emit, VerificationFailed
from regmirror.freshness import (
    FreshnessPolicy,
    FreshnessRules,
    TagRecord,
    is_fresh,
    may_serve_stale,
)
from regmirror.inflight import Source
from regmirror.knowledge import Knowledge
from regmirror.manifests import Manifest, Summary, names_a_kind
from regmirror.names import Digest, Reference, Repository, Tag
from regmirror.outcomes import CHANGED, COALESCED, HIT, MISS, REVALIDATED, STALE, STORED, Answer
from regmirror.singleflight import SingleFlight
from regmirror.upstream.client import UpstreamClient

T = TypeVar("T")
PATIENCE: Final = 1.5  # seconds a client waits for an upstream while a stale answer is at hand


@dataclass(frozen=True)
class Parts:
    """What a Mirror is made of; ``now`` is the wall clock that tags age by."""

    knowledge: Knowledge
    store: LocalBlobStore
    downloads: Downloads
    upstreams: Mapping[str, UpstreamClient]
    rules: FreshnessRules
    emit: Emit
    offline: bool = False
    now: Callable[[], float] = time.time
    patience: float = PATIENCE


class Mirror:
    """Manifests and blobs of every upstream, from the store when possible."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._knowledge = parts.knowledge
        self._asking = Asking(parts.knowledge, parts.upstreams, offline=parts.offline)
        self._manifests: SingleFlight[Key, Answer[Manifest]] = SingleFlight()
        self._heads: SingleFlight[Key, Answer[Summary]] = SingleFlight()
        self._sizes: SingleFlight[Key, Answer[int | None]] = SingleFlight()
        self._rights: SingleFlight[Key, Answer[int | None]] = SingleFlight()

    async def close(self) -> None:
        """End what is being asked of upstreams."""
        for flight in (self._manifests, self._heads, self._sizes, self._rights):
            await flight.close()

    # --- manifests -----------------------------------------------------------------------

    async def manifest(self, repository: Repository, reference: Reference) -> Answer[Manifest]:
        """The manifest; raises ManifestUnknown or another RegistryError."""
        if isinstance(reference, Digest):
            answer = await self._manifest_by_digest(repository, reference)
            self._knowledge.note_manifest_pull(repository, reference)
            return answer
        answer = await self._manifest_by_tag(repository, reference)
        self._knowledge.note_tag_pull(repository, reference)
        self._knowledge.note_manifest_pull(repository, answer.content.digest)
        return answer

    async def head_manifest(self, repository: Repository, reference: Reference) -> Answer[Summary]:
        """What ``manifest`` would tell, without fetching the manifest for it."""
        if isinstance(reference, Digest):
            return await self._head_by_digest(repository, reference)
        answer = await self._head_by_tag(repository, reference)
        self._knowledge.note_tag_pull(repository, reference)  # how most clients resolve a tag
        return answer

    async def _manifest_by_tag(self, repository: Repository, tag: Tag) -> Answer[Manifest]:
        record, policy = await self._find_tag(repository, tag)
        if record is not None and self._may_believe(record, policy):
            return await self._manifest_by_record(repository, tag, record)
        stale = await self._stale(repository, record, policy)
        work = self._asking.once(
            self._manifests, (repository, tag), lambda: self._refresh(repository, tag, record)
        )
        return await self._or(work, stale, repository)

    async def _find_tag(self, repository: Repository, tag: Tag) -> tuple[TagRecord | None, FreshnessPolicy]:
        policy = self._parts.rules.policy(repository, tag)
        record = self._knowledge.recall_tag(repository, tag)
        if record is None or not is_fresh(record, policy, self._parts.now()):
            # Another worker may have asked since; the database knows.
            record = await self._knowledge.find_tag(repository, tag)
        return record, policy

    def _may_believe(self, record: TagRecord, policy: FreshnessPolicy) -> bool:
        return self._parts.offline or is_fresh(record, policy, self._parts.now())

    async def _manifest_by_digest(self, repository: Repository, digest: Digest) -> Answer[Manifest]:
        manifest = await self._knowledge.find_manifest(repository, digest)
        if manifest is not None:
            return Answer(manifest, HIT)
        return await self._asking.once(
            self._manifests, (repository, digest), lambda: self._fetch_unless_held(repository, digest)
        )

    async def _manifest_by_record(
        self, repository: Repository, tag: Tag, record: TagRecord
    ) -> Answer[Manifest]:
        """The manifest of a tag that is believed; maybe only its digest is known so far."""
        try:
            return await self._manifest_by_digest(repository, record.digest)
        except ManifestUnknown:  # the tag has moved on and its old manifest is gone
            return await self._asking.once(
                self._manifests, (repository, tag), lambda: self._fetch_tag(repository, tag)
            )

    async def _head_by_tag(self, repository: Repository, tag: Tag) -> Answer[Summary]:
        record, policy = await self._find_tag(repository, tag)
        if record is not None and self._may_believe(record, policy):
            return Answer(Summary(record.digest, record.media_type, record.size), HIT)
        if (repository, tag) in self._manifests:
            return _head_of(await self._manifest_by_tag(repository, tag))
        stale = await self._stale(repository, record, policy)
        work = self._asking.once(
            self._heads, (repository, tag), lambda: self._refresh_head(repository, tag, record)
        )
        return await self._or(work, _head_of(stale) if stale else None, repository)

    async def _head_by_digest(self, repository: Repository, digest: Digest) -> Answer[Summary]:
        manifest = await self._knowledge.find_manifest(repository, digest)
        if manifest is not None:
            return _head_of(Answer(manifest, HIT))

        async def ask() -> Answer[Summary]:
            head = await self._ask_head(repository, digest)
            if head is None:
                return _head_of(await self._fetch(repository, digest))
            return Answer(head, MISS)

        return await self._asking.once(self._heads, (repository, digest), ask)

    async def _fetch(self, repository: Repository, reference: Reference) -> Answer[Manifest]:
        manifest = await self._asking.upstream(repository).get_manifest(repository, reference)
        tag = None if isinstance(reference, Digest) else reference
        await self._knowledge.save_manifest(repository, manifest, tag)
        return Answer(manifest, STORED)

    async def _fetch_unless_held(self, repository: Repository, digest: Digest) -> Answer[Manifest]:
        """Somebody's fetch may have ended while this one looked into the database.

        A manifest that another repository brought is not fetched again: its upstream's HEAD says
        whether this repository has it as well.
        """
        held = await self._knowledge.find_manifest(repository, digest)
        if held is not None:
            return Answer(held, HIT)
        stored = await self._knowledge.find_anywhere(digest)
        if stored is None or await self._ask_head(repository, digest) is None:
            return await self._fetch(repository, digest)
        await self._knowledge.save_manifest(repository, stored)
        return Answer(stored, STORED)

    async def _refresh(self, repository: Repository, tag: Tag, record: TagRecord | None) -> Answer[Manifest]:
        """Ask what the tag means now: one HEAD if its manifest is here, else one GET."""
        newest = self._knowledge.recall_tag(repository, tag)
        if newest is not None and newest != record:  # asked and answered a moment ago
            held = await self._knowledge.find_manifest(repository, newest.digest)
            if held is not None:
                return Answer(held, HIT)
        if record is None:
            return await self._fetch_tag(repository, tag)
        held = await self._knowledge.find_manifest(repository, record.digest)
        if held is None:
            return await self._fetch_tag(repository, tag)
        try:
            digest = (await self._asking.upstream(repository).head_manifest(repository, tag)).digest
        except UpstreamNotFound:
            digest = None  # or this registry does not know HEAD: GET will tell
        if digest == record.digest:
            renewed = replace(record, checked_at=self._parts.now())
            await self._knowledge.save_tag(repository, tag, renewed)
            return Answer(held, REVALIDATED)
        fetched = await self._fetch_tag(repository, tag)
        is_same = fetched.content.digest == record.digest
        return replace(fetched, outcome=REVALIDATED if is_same else CHANGED)

    async def _fetch_tag(self, repository: Repository, tag: Tag) -> Answer[Manifest]:
        try:
            return await self._fetch(repository, tag)
        except UpstreamNotFound:
            await self._knowledge.forget_tag(repository, tag)
            raise

    async def _refresh_head(
        self, repository: Repository, tag: Tag, record: TagRecord | None
    ) -> Answer[Summary]:
        """Ask by HEAD alone, unless the upstream's HEAD does not tell enough."""
        head = await self._ask_head(repository, tag)
        if head is None:
            return _head_of(await self._fetch_tag(repository, tag))
        said = TagRecord(head.digest, head.media_type, head.size, self._parts.now())
        await self._knowledge.save_tag(repository, tag, said)
        same = record is not None and record.digest == head.digest
        return Answer(head, REVALIDATED if same else MISS)

    async def _ask_head(self, repository: Repository, reference: Reference) -> Summary | None:
        """The upstream's HEAD; None if it does not tell all that its GET would.

        404 is no answer either: some registries do not know HEAD and say so like that.
        """
        client = self._asking.upstream(repository)
        try:
            head = await client.head_manifest(repository, reference)
        except UpstreamNotFound:
            return None
        digest = reference if isinstance(reference, Digest) else head.digest
        if digest is None or head.size is None or not names_a_kind(head.media_type):
            return None
        return Summary(digest, head.media_type, head.size)

    async def _stale(
        self, repository: Repository, record: TagRecord | None, policy: FreshnessPolicy
    ) -> Answer[Manifest] | None:
        """What may be answered should the upstream fail."""
        if record is None or not may_serve_stale(record, policy, self._parts.now()):
            return None
        held = await self._knowledge.find_manifest(repository, record.digest)
        return None if held is None else Answer(held, STALE)

    async def _or(
        self, work: Awaitable[Answer[T]], stale: Answer[T] | None, repository: Repository
    ) -> Answer[T]:
        """The answer of ``work``, or the stale one if the upstream fails or is slow."""
        if stale is None:
            return await work
        try:
            return await asyncio.wait_for(work, self._parts.patience)
        except TimeoutError:
            return replace(stale, warning=f"{repository.upstream} is slow to answer")
        except UpstreamError as error:
            return replace(stale, warning=error.message)

    # --- blobs ---------------------------------------------------------------------------

    async def blob(self, repository: Repository, digest: Digest) -> Answer[Blob]:
        """The blob, opened; close it. Raises BlobUnknown or another RegistryError."""
        answer, is_proven = await self._open(repository, digest)
        try:
            await self._prove_right(repository, digest, is_proven=is_proven)
        except BaseException:
            answer.content.close()
            raise
        self._knowledge.note_blob_pull(digest)
        return answer

    async def _open(self, repository: Repository, digest: Digest) -> tuple[Answer[Blob], bool]:
        """The stored blob, or the download to follow; and whether the repository's own upstream
        has just answered with it, which proves the right to it.
        """
        stored = await self._open_stored(digest)
        if stored is not None:
            return Answer(stored, HIT), False
        self._knowledge.refuse_missing(repository, digest, BlobUnknown)
        with self._asking.saying_unknown((repository, digest), BlobUnknown):
            client = self._asking.upstream(repository)
            source = Source(
                repository,
                lambda offset: client.open_blob(repository, digest, offset),
                lambda: self._knowledge.find_size(digest),
            )
            follower, joined = await self._parts.downloads.join(digest, source)
        return Answer(follower, COALESCED if joined else STORED), follower.proves(repository)

    async def head_blob(self, repository: Repository, digest: Digest) -> Answer[int | None]:
        """The blob's size without its bytes; None if nobody can tell."""
        if await self._knowledge.has_right(repository, digest):
            stored = await self._open_stored(digest)
            if stored is not None:
                stored.close()
                return Answer(stored.size, HIT)
        return await self._asking.once(
            self._sizes,
            (repository, digest),
            lambda: self._ask_size(repository, digest),
            BlobUnknown,
        )

    async def _ask_size(self, repository: Repository, digest: Digest) -> Answer[int | None]:
        client = self._asking.upstream(repository)
        size = await client.head_blob(repository, digest)
        if size is None:
            size = await self._knowledge.find_size(digest)
        if size is None:
            size = await client.blob_size(repository, digest)
        await self._knowledge.confirm(repository, digest)
        return Answer(size, MISS)

    async def _prove_right(self, repository: Repository, digest: Digest, *, is_proven: bool) -> None:
        """Ask the upstream whether the repository has this blob, unless that is known."""
        if await self._knowledge.has_right(repository, digest):
            return
        if is_proven:
            await self._knowledge.confirm(repository, digest)
            return
        await self._asking.once(
            self._rights,
            (repository, digest),
            lambda: self._confirm(repository, digest),
            BlobUnknown,
        )

    async def _confirm(self, repository: Repository, digest: Digest) -> Answer[int | None]:
        if await self._knowledge.has_right(repository, digest):  # confirmed a moment ago
            return Answer(None, HIT)
        size = await self._asking.upstream(repository).head_blob(repository, digest)
        await self._knowledge.confirm(repository, digest)
        return Answer(size, MISS)

    async def _open_stored(self, digest: Digest) -> LocalBlob | None:
        """The stored file, if it has the size it must have; else it is put aside."""
        blob = self._parts.store.open(digest)
        if blob is None:
            return None
        size = await self._knowledge.find_size(digest)
        if size is None and blob.size > 0:
            await self._knowledge.save_blob(digest, blob.size)  # a file without its row
            return blob
        if blob.size != size:  # memory may hold what a manifest claimed of it before it was stored
            size = await self._knowledge.find_size(digest, again=True)
        if blob.size == size or digest == Digest.of(b"", digest.algorithm):
            return blob
        blob.close()
        await self._put_aside(digest, blob.size)
        return None

    async def _put_aside(self, digest: Digest, size: int) -> None:
        await self._parts.store.quarantine(digest)
        await self._knowledge.forget_blob(digest)
        self._parts.emit(VerificationFailed("", "blob", digest, "store"))
        self._parts.emit(BlobRemoved(digest, size, "corrupt"))


def _head_of(answer: Answer[Manifest]) -> Answer[Summary]:
    manifest = answer.content
    head = Summary(manifest.digest, manifest.media_type, manifest.size)
    return Answer(head, answer.outcome, answer.warning)
