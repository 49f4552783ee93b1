"""The heart: what it means to pull through.

A tag may ask its upstream, a digest looks in the store first and is true for ever. What is
asked upstream is asked once, however many wait for it. Storing content does not open it: it is
served under a repository if it was fetched and verified through that repository, or if the
repository's own upstream proves that it has it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

from regmirror.asking import PATIENCE, UNCACHED_PATIENCE, Asking, Key
from regmirror.blobs.base import Blob
from regmirror.blobs.local import LocalBlob, LocalBlobStore
from regmirror.completeness import Completeness
from regmirror.downloads import Downloads
from regmirror.errors import BlobUnknown, Unavailable, UpstreamFailed, UpstreamNotFound
from regmirror.events import BlobRemoved, Emit, VerificationFailed
from regmirror.fetching import Source
from regmirror.follower import Follower
from regmirror.freshness import FreshnessRules
from regmirror.knowledge import Knowledge
from regmirror.manifests import Manifest, Summary
from regmirror.names import Digest, Reference, Repository, Tag
from regmirror.outcomes import COALESCED, HIT, MISS, STORED, Answer
from regmirror.possession import COMMON, Sample, Sampler, sends
from regmirror.reads import is_in_doubt
from regmirror.resolver import Policy, Resolver
from regmirror.singleflight import SingleFlight
from regmirror.upstream.client import UpstreamClient

DISPUTE: Final = 20.0  # seconds that a client waits for the end of another repository's download


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
        self._proofs: SingleFlight[Key, Answer[bool]] = SingleFlight()
        self._sampler = Sampler()

    async def close(self) -> None:
        """End what is being asked of upstreams."""
        await self._resolver.close()
        for flight in (self._sizes, self._proofs):
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
        answer = await self._open_proven(repository, digest)
        if answer is None:  # another repository's download: it ends, and either it or this one is right
            with suppress(TimeoutError):
                async with asyncio.timeout(DISPUTE):
                    await self._parts.downloads.settle(digest)
            answer = await self._open_proven(repository, digest)
        if answer is None:
            message = f"two upstreams send different bytes as {digest}; it can be had when one has ended"
            raise Unavailable(message, retry_after=5)
        self._knowledge.note_blob_pull(digest)
        return answer

    async def _open_proven(self, repository: Repository, digest: Digest) -> Answer[Blob] | None:
        """The blob; None if other bytes arrive for another repository than this one's upstream has."""
        answer, is_proven = await self._open(repository, digest)
        try:
            if is_proven or await self._is_possessed(repository, digest, answer.content):
                return answer
        except BaseException:
            answer.content.close()
            raise
        answer.content.close()
        return None

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
        """The stored blob, or the download to follow; and whether all of the download's bytes come
        from the repository's own upstream, which proves that it has them.
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
            source.repository, lambda: self._parts.downloads.join(digest, source), age=age, subject=digest
        )

    async def head_blob(self, repository: Repository, digest: Digest) -> Answer[int | None]:
        """The blob's size without its bytes; None if nobody can tell."""
        stored = await self._open_stored(digest)
        if stored is not None:
            try:
                await self._is_possessed(repository, digest, stored)
            finally:
                stored.close()
            return Answer(stored.size, HIT)
        return await self.asking.once(
            self._sizes,
            (repository, digest),
            lambda: self._fetch_size(repository, digest),
            BlobUnknown,
        )

    async def _fetch_size(self, repository: Repository, digest: Digest) -> Answer[int | None]:
        """What the upstream states: never what a manifest says, which anybody may have written."""
        client = self.asking.upstream(repository)
        size = await client.head_blob(repository, digest)
        return Answer(await client.blob_size(repository, digest) if size is None else size, MISS)

    async def _is_possessed(self, repository: Repository, digest: Digest, blob: Blob) -> bool:
        """Whether the repository's own upstream has sent this blob, or proves now that it has it (see
        ``possession``).

        False only of a blob in flight, whose own bytes may be the wrong ones. Of a stored one raises
        BlobUnknown, or what went wrong with the upstream.
        """
        if digest in COMMON or await self._knowledge.has_right(repository, digest):
            return True
        if self._parts.downloads.is_proven(digest, repository):  # but not written down yet
            return True
        self._knowledge.refuse_missing(repository, digest, BlobUnknown)
        sample = await self._take_sample(repository, digest, blob)
        answer = await self.asking.once(
            self._proofs,
            (repository, digest),
            lambda: self._prove(repository, digest, sample, blob),
            BlobUnknown,
        )
        return answer.content

    async def _take_sample(self, repository: Repository, digest: Digest, blob: Blob) -> Sample:
        if isinstance(blob, Follower) and blob.is_passing:  # its bytes can be read once only
            raise Unavailable("the blob cannot be stored and arrives for another repository", retry_after=1)
        try:
            sample = await self._sampler.take(repository.upstream, digest, blob)
        except OSError as error:
            raise Unavailable(f"the stored blob cannot be read: {error}", retry_after=10) from error
        if isinstance(blob, Follower):
            blob.forget_reads()
        return sample

    async def _prove(
        self, repository: Repository, digest: Digest, sample: Sample, blob: Blob
    ) -> Answer[bool]:
        """Whether the upstream sends the ``sample`` of ``blob``, written down if that is verified."""
        downloads = self._parts.downloads
        if downloads.is_proven(digest, repository) or await self._knowledge.has_right(repository, digest):
            return Answer(content=True, outcome=HIT)  # proven a moment ago
        client = self.asking.upstream(repository)
        try:
            is_proven = await sends(partial(client.open_blob, repository, digest), sample)
        except UpstreamFailed as error:
            if error.reason != "range":
                raise
            is_proven = False  # its blob of this name is shorter, if there is one
        is_verified = not isinstance(blob, Follower) or blob.is_verified
        if is_proven and is_verified:
            await self._knowledge.confirm(repository, digest)
        elif is_proven:
            downloads.note_sample(digest, repository, sample.start, sample.data)
        elif is_verified:
            message = f"sent other bytes for {repository.name}@{digest} than are stored"
            raise UpstreamNotFound(repository.upstream, message, reason="possession")
        return Answer(is_proven, MISS)

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
            if not is_in_doubt():
                await self._knowledge.save_blob(digest, blob.size)  # a file without its row
            return blob
        if blob.size != size:  # another worker may have replaced the file since memory learnt its size
            size = await self._knowledge.find_size(digest, again=True) or size
        if blob.size == size or digest == Digest.of(b"", digest.algorithm):
            return blob
        blob.close()
        if not is_in_doubt():
            await self._put_aside(digest, blob.size)
        return None

    async def _put_aside(self, digest: Digest, size: int) -> None:
        await self._parts.store.quarantine(digest)
        await self._knowledge.forget_blob(digest)
        self._parts.emit(VerificationFailed("", "blob", digest, "store"))
        self._parts.emit(BlobRemoved(digest, size, "corrupt"))
