"""The heart: what it means to pull through.

A tag may ask its upstream, a digest looks in the store first and is true for ever. What is
asked upstream is asked once, however many wait for it. Having the bytes is not having the
right to them: content is served under a repository if a manifest of that repository
references it or its upstream has confirmed it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from regmirror.asking import PATIENCE, UNCACHED_PATIENCE, Asking, Key
from regmirror.blobs.base import Blob
from regmirror.blobs.local import LocalBlob, LocalBlobStore
from regmirror.completeness import Completeness
from regmirror.downloads import Downloads
from regmirror.errors import BlobUnknown
from regmirror.events import BlobRemoved, Emit, VerificationFailed
from regmirror.fetching import Source
from regmirror.freshness import FreshnessRules
from regmirror.inflight import Follower
from regmirror.knowledge import Knowledge
from regmirror.manifests import Manifest, Summary
from regmirror.names import Digest, Reference, Repository, Tag
from regmirror.outcomes import COALESCED, HIT, MISS, STORED, Answer
from regmirror.resolver import Policy, Resolver
from regmirror.singleflight import SingleFlight
from regmirror.upstream.client import UpstreamClient


@dataclass(frozen=True)
class Parts:
    """What a Mirror is made of; ``now`` is the wall clock that tags age by.

    ``patience`` and ``uncached_patience`` are the seconds a client waits for an upstream with and
    without a stale answer at hand; ``on_missing`` and ``incomplete`` are keys of ``freshness``.
    """

    knowledge: Knowledge
    store: LocalBlobStore
    downloads: Downloads
    upstreams: Mapping[str, UpstreamClient]
    rules: FreshnessRules
    emit: Emit
    offline: bool = False
    now: Callable[[], float] = time.time
    patience: float = PATIENCE
    uncached_patience: float = UNCACHED_PATIENCE
    on_missing: Literal["forget", "keep"] = "forget"
    incomplete: Literal["refuse", "serve"] = "refuse"


class Mirror:
    """Manifests and blobs of every upstream, from the store when possible."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._knowledge = parts.knowledge
        self.asking = Asking(
            parts.knowledge,
            parts.upstreams,
            offline=parts.offline,
            patience=parts.patience,
            uncached_patience=parts.uncached_patience,
        )
        policy = Policy(parts.rules, parts.offline, parts.on_missing, parts.incomplete, parts.now)
        completeness = Completeness(parts.knowledge, parts.store)
        self._resolver = Resolver(parts.knowledge, self.asking, completeness, policy)
        self._sizes: SingleFlight[Key, Answer[int | None]] = SingleFlight()
        self._rights: SingleFlight[Key, Answer[int | None]] = SingleFlight()

    async def close(self) -> None:
        """End what is being asked of upstreams."""
        await self._resolver.close()
        for flight in (self._sizes, self._rights):
            await flight.close()

    # --- manifests -----------------------------------------------------------------------

    async def manifest(self, repository: Repository, reference: Reference) -> Answer[Manifest]:
        """The manifest; raises ManifestUnknown or another RegistryError."""
        if isinstance(reference, Digest):
            answer = await self._resolver.manifest_by_digest(repository, reference)
            self._knowledge.note_manifest_pull(repository, reference)
            return answer
        answer = await self._resolver.manifest_by_tag(repository, reference)
        self._knowledge.note_tag_pull(repository, reference)
        self._knowledge.note_manifest_pull(repository, answer.content.digest)
        return answer

    async def head_manifest(self, repository: Repository, reference: Reference) -> Answer[Summary]:
        """What ``manifest`` would tell, without fetching the manifest for it."""
        if isinstance(reference, Digest):
            return await self._resolver.head_by_digest(repository, reference)
        answer = await self._resolver.head_by_tag(repository, reference)
        self._knowledge.note_tag_pull(repository, reference)  # how most clients resolve a tag
        return answer

    def repeat_manifest(self, repository: Repository, reference: Reference) -> Manifest | None:
        """What ``manifest`` would answer now as a hit, by memory alone; then that pull is noted."""
        held = self._resolver.recall(repository, reference)
        if held is not None:
            if isinstance(reference, Tag):
                self._knowledge.note_tag_pull(repository, reference)
            self._knowledge.note_manifest_pull(repository, held.digest)
        return held

    def repeat_head(self, repository: Repository, reference: Reference) -> Summary | None:
        """The same for what ``head_manifest`` answers."""
        head = self._resolver.recall_head(repository, reference)
        if head is not None and isinstance(reference, Tag):
            self._knowledge.note_tag_pull(repository, reference)
        return head

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

    def repeat_blob(self, repository: Repository, digest: Digest, size: int) -> bytearray | None:
        """The bytes of the blob that ``blob`` would answer with, if memory alone proves the right to
        it, and the kernel holds all of it in memory; then that pull is noted.
        """
        if not self._knowledge.recall_right(repository, digest, size):
            return None
        try:
            data = self._parts.store.read_cached(digest, size)
        except OSError:  # the ordinary path looks after it
            return None
        if data is not None:
            self._knowledge.note_blob_pull(digest)
        return data

    async def _open(self, repository: Repository, digest: Digest) -> tuple[Answer[Blob], bool]:
        """The stored blob, or the download to follow; and whether the repository's own upstream
        has just answered with it, which proves the right to it.
        """
        stored = await self._open_stored(digest)
        if stored is not None:
            return Answer(stored, HIT), False
        self._knowledge.refuse_missing(repository, digest, BlobUnknown)
        with self.asking.saying_unknown((repository, digest), BlobUnknown):
            client = self.asking.upstream(repository)
            source = Source(
                repository,
                lambda offset: client.open_blob(repository, digest, offset),
                client.read_timeout,
            )
            follower, joined = await self._join(digest, source)
        outcome = MISS if follower.is_passing else COALESCED if joined else STORED
        return Answer(follower, outcome), follower.proves(repository)

    async def _join(self, digest: Digest, source: Source) -> tuple[Follower, bool]:
        """Follow the blob's download as soon as its upstream answers, if that is soon enough.

        One that another upstream was asked for is no older than this: it may yet be asked of ours.
        """
        flying = self._parts.downloads.find(digest)
        age = 0.0
        if flying is not None and flying.source.repository.upstream == source.repository.upstream:
            age = asyncio.get_running_loop().time() - flying.began
        return await self.asking.patiently(
            source.repository, lambda: self._parts.downloads.join(digest, source), age=age
        )

    async def head_blob(self, repository: Repository, digest: Digest) -> Answer[int | None]:
        """The blob's size without its bytes; None if nobody can tell."""
        if await self._knowledge.has_right(repository, digest):
            stored = await self._open_stored(digest)
            if stored is not None:
                stored.close()
                return Answer(stored.size, HIT)
        return await self.asking.once(
            self._sizes,
            (repository, digest),
            lambda: self._ask_size(repository, digest),
            BlobUnknown,
        )

    async def _ask_size(self, repository: Repository, digest: Digest) -> Answer[int | None]:
        client = self.asking.upstream(repository)
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
        if is_proven:  # written down when the last byte has been verified
            return
        await self.asking.once(
            self._rights,
            (repository, digest),
            lambda: self._confirm(repository, digest),
            BlobUnknown,
        )

    async def _confirm(self, repository: Repository, digest: Digest) -> Answer[int | None]:
        if await self._knowledge.has_right(repository, digest):  # confirmed a moment ago
            return Answer(None, HIT)
        size = await self.asking.upstream(repository).head_blob(repository, digest)
        await self._knowledge.confirm(repository, digest)
        return Answer(size, MISS)

    async def _open_stored(self, digest: Digest) -> LocalBlob | None:
        """The stored file, if it has the size it must have; else it is put aside."""
        try:
            blob = self._parts.store.open(digest)
        except OSError:  # as good as not there: it is fetched again, and replaced if that can be
            return None
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
