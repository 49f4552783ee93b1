"""What a tag or a digest means, and its manifest: from memory, from the upstream, or stale.

A tag may ask its upstream, a digest looks in the store first and is true for ever. While the
upstream fails a stored manifest stands in for it, if what the manifest names is stored as well.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from regmirror.errors import (
    ManifestUnknown,
    MetadataUnavailable,
    UpstreamError,
    UpstreamNotFound,
    UpstreamRateLimited,
)
from regmirror.metadata.bounded_reads import is_in_doubt
from regmirror.metadata.cache import MetadataCache
from regmirror.metadata.records import TagRecord
from regmirror.mirror.cache_status import CHANGED, HIT, MISS, REVALIDATED, STALE, STORED, CachedResult
from regmirror.mirror.completeness import Completeness
from regmirror.mirror.freshness import FreshnessPolicy, FreshnessRules, is_fresh, may_serve_stale
from regmirror.mirror.upstream_access import Key, UpstreamAccess
from regmirror.oci.manifests import Manifest, ManifestSummary, names_a_kind
from regmirror.oci.names import Digest, Reference, Repository, Tag
from regmirror.singleflight import SingleFlight

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Policy:
    """What may be answered without asking, or instead of an upstream's failure.

    ``on_missing`` and ``incomplete`` are the keys of ``freshness``; ``now`` is the wall clock.
    """

    rules: FreshnessRules
    offline: bool
    on_missing: Literal["forget", "keep"]
    incomplete: Literal["refuse", "serve"]
    now: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Fallback:
    """The manifest that a tag last had here, and whether it is young enough to stand in."""

    manifest: Manifest | None = None
    is_young: bool = False

    @property
    def stale(self) -> Manifest | None:
        return self.manifest if self.is_young else None


class Resolver:
    """Manifests and what HEAD tells of them, by tag and by digest."""

    def __init__(
        self,
        metadata_cache: MetadataCache,
        upstream_access: UpstreamAccess,
        completeness: Completeness,
        policy: Policy,
    ) -> None:
        self._metadata_cache, self._upstream_access = metadata_cache, upstream_access
        self._completeness, self._policy = completeness, policy
        self._manifests: SingleFlight[Key, CachedResult[Manifest]] = SingleFlight()
        self._heads: SingleFlight[Key, CachedResult[ManifestSummary]] = SingleFlight()

    async def close(self) -> None:
        """End what is being asked of upstreams."""
        await self._manifests.close()
        await self._heads.close()

    # --- from memory ---------------------------------------------------------------------

    def recall(self, repository: Repository, reference: Reference) -> Manifest | None:
        """The manifest that would be answered as a hit; None if memory alone cannot tell."""
        if self._upstream_access.find_unavailability(repository) is not None:
            return None  # the image might be incomplete
        if isinstance(reference, Digest):
            return self._metadata_cache.get_cached_manifest(repository, reference)
        record = self._get_cached_tag(repository, reference)
        return None if record is None else self._metadata_cache.get_cached_manifest(repository, record.digest)

    def get_cached_head(self, repository: Repository, reference: Reference) -> ManifestSummary | None:
        """The same for what HEAD tells."""
        if isinstance(reference, Digest):
            held = self.recall(repository, reference)
            return None if held is None else ManifestSummary(held.digest, held.media_type, held.size)
        record = self._get_cached_tag(repository, reference)
        if record is None or self._upstream_access.find_unavailability(repository) is not None:
            return None
        return ManifestSummary(record.digest, record.media_type, record.size)

    def _get_cached_tag(self, repository: Repository, tag: Tag) -> TagRecord | None:
        """What memory says of a tag, if that is fresh."""
        record = self._metadata_cache.get_cached_tag(repository, tag)
        policy = self._policy
        if record is None or not is_fresh(record, policy.rules.policy(repository, tag), policy.now()):
            return None
        return record

    # --- by digest -----------------------------------------------------------------------

    async def manifest_by_digest(self, repository: Repository, digest: Digest) -> CachedResult[Manifest]:
        """The manifest; raises ManifestUnknown or another RegistryError."""
        held = await self._metadata_cache.find_manifest(repository, digest)
        if held is not None:
            return await self._unless_incomplete(repository, held)
        return await self._fetch_once(repository, digest)

    async def head_by_digest(self, repository: Repository, digest: Digest) -> CachedResult[ManifestSummary]:
        """What ``manifest_by_digest`` would tell, without fetching the manifest for it."""
        held = await self._metadata_cache.find_manifest(repository, digest)
        if held is not None:
            return _head_of(await self._unless_incomplete(repository, held))

        async def ask() -> CachedResult[ManifestSummary]:
            head = await self._ask_head(repository, digest)
            if head is None:
                return _head_of(await self._fetch(repository, digest))
            return CachedResult(head, MISS)

        return await self._upstream_access.once(self._heads, (repository, digest), ask)

    async def _fetch_once(
        self, repository: Repository, digest: Digest, *, has_stale: bool = False
    ) -> CachedResult[Manifest]:
        return await self._upstream_access.once(
            self._manifests,
            (repository, digest),
            lambda: self._fetch_unless_held(repository, digest),
            has_stale=has_stale,
        )

    # --- by tag --------------------------------------------------------------------------

    async def manifest_by_tag(self, repository: Repository, tag: Tag) -> CachedResult[Manifest]:
        """The manifest; raises ManifestUnknown or another RegistryError."""
        record, policy = await self._find_tag(repository, tag)
        if record is not None and self._may_believe(record, policy):
            return await self._by_record(repository, tag, record)
        fallback = await self._find_fallback(repository, record, policy)
        if fallback.stale and (reason := self._upstream_access.find_reserve_reason(repository)):
            return CachedResult(fallback.stale, STALE, reason)

        async def ask(has_stale: bool) -> CachedResult[Manifest]:
            return await self._upstream_access.once(
                self._manifests,
                (repository, tag),
                lambda: self._refresh(repository, tag, record),
                has_stale=has_stale,
            )

        return await self._or(ask, fallback, repository, lambda answer: answer)

    async def head_by_tag(self, repository: Repository, tag: Tag) -> CachedResult[ManifestSummary]:
        """What ``manifest_by_tag`` would tell, without fetching the manifest for it."""
        record, policy = await self._find_tag(repository, tag)
        if record is not None and self._may_believe(record, policy):
            if self._upstream_access.find_unavailability(repository):  # HEAD promises what GET has to keep
                return _head_of(await self._by_record(repository, tag, record))
            return CachedResult(ManifestSummary(record.digest, record.media_type, record.size), HIT)
        if (repository, tag) in self._manifests:
            return _head_of(await self.manifest_by_tag(repository, tag))
        fallback = await self._find_fallback(repository, record, policy)
        if fallback.stale and (reason := self._upstream_access.find_reserve_reason(repository)):
            return _head_of(CachedResult(fallback.stale, STALE, reason))

        async def ask(has_stale: bool) -> CachedResult[ManifestSummary]:
            return await self._upstream_access.once(
                self._heads,
                (repository, tag),
                lambda: self._refresh_head(repository, tag, record),
                has_stale=has_stale,
            )

        return await self._or(ask, fallback, repository, _head_of)

    async def _find_tag(self, repository: Repository, tag: Tag) -> tuple[TagRecord | None, FreshnessPolicy]:
        policy = self._policy.rules.policy(repository, tag)
        record = self._metadata_cache.get_cached_tag(repository, tag)
        if record is None or not is_fresh(record, policy, self._policy.now()):
            # Another worker may have asked since; the database knows.
            record = await self._metadata_cache.find_tag(repository, tag)
        return record, policy

    def _may_believe(self, record: TagRecord, policy: FreshnessPolicy) -> bool:
        return self._policy.offline or is_fresh(record, policy, self._policy.now())

    async def _by_record(self, repository: Repository, tag: Tag, record: TagRecord) -> CachedResult[Manifest]:
        """The manifest of a tag that is believed; maybe only its digest is known so far."""
        held = await self._metadata_cache.find_manifest(repository, record.digest)
        if held is None and self._policy.offline:
            held = await self._find_held(repository, record)
        if held is not None:
            return await self._unless_incomplete(repository, held)

        async def ask(has_stale: bool) -> CachedResult[Manifest]:
            try:
                return await self._fetch_once(repository, record.digest, has_stale=has_stale)
            except ManifestUnknown:  # the tag has moved on and its old manifest is gone
                return await self._upstream_access.once(
                    self._manifests, (repository, tag), lambda: self._fetch_tag(repository, tag)
                )

        fallback = Fallback(await self._find_held(repository, record), is_young=True)
        return await self._or(ask, fallback, repository, lambda answer: answer)

    # --- asking --------------------------------------------------------------------------

    async def _fetch(self, repository: Repository, reference: Reference) -> CachedResult[Manifest]:
        manifest = await self._upstream_access.upstream(repository).get_manifest(repository, reference)
        tag = None if isinstance(reference, Digest) else reference
        await self._metadata_cache.save_manifest(repository, manifest, tag)
        return CachedResult(manifest, STORED)

    async def _fetch_unless_held(self, repository: Repository, digest: Digest) -> CachedResult[Manifest]:
        """Somebody's fetch may have ended while this one looked into the database.

        A manifest that another repository has brought is fetched all the same: its bytes, sent by this
        repository's own upstream, are the only proof that this repository has it.
        """
        held = await self._metadata_cache.find_manifest(repository, digest)
        return CachedResult(held, HIT) if held is not None else await self._fetch(repository, digest)

    async def _refresh(
        self, repository: Repository, tag: Tag, record: TagRecord | None
    ) -> CachedResult[Manifest]:
        """Ask what the tag means now: one HEAD if its manifest is here, else one GET."""
        newest = self._metadata_cache.get_cached_tag(repository, tag)
        if newest is not None and newest != record:  # asked and answered a moment ago
            held = await self._metadata_cache.find_manifest(repository, newest.digest)
            if held is not None:
                return CachedResult(held, HIT)
        if record is None:
            return await self._fetch_tag(repository, tag)
        held = await self._metadata_cache.find_manifest(repository, record.digest)
        if held is None:
            return await self._fetch_tag(repository, tag)
        try:
            digest = (await self._upstream_access.upstream(repository).head_manifest(repository, tag)).digest
        except UpstreamNotFound:
            digest = None  # or this registry does not know HEAD: GET will tell
        if digest == record.digest:
            renewed = replace(record, checked_at=self._policy.now())
            await self._metadata_cache.save_tag(repository, tag, renewed)
            return CachedResult(held, REVALIDATED)
        fetched = await self._fetch_tag(repository, tag)
        is_same = fetched.content.digest == record.digest
        return replace(fetched, cache_status=REVALIDATED if is_same else CHANGED)

    async def _fetch_tag(self, repository: Repository, tag: Tag) -> CachedResult[Manifest]:
        try:
            return await self._fetch(repository, tag)
        except UpstreamNotFound:
            if self._policy.on_missing == "forget" and not self._policy.offline:
                await self._metadata_cache.delete_tag(repository, tag)
            raise

    async def _refresh_head(
        self, repository: Repository, tag: Tag, record: TagRecord | None
    ) -> CachedResult[ManifestSummary]:
        """Ask by HEAD alone, unless the upstream's HEAD does not tell enough."""
        head = await self._ask_head(repository, tag)
        if head is None:
            return _head_of(await self._fetch_tag(repository, tag))
        said = TagRecord(head.digest, head.media_type, head.size, self._policy.now())
        if record is not None and await self._metadata_cache.find_manifest(repository, said.digest) is None:
            before = await self._find_held(repository, record)
            said = replace(said, previous=before.digest if before else None)
        await self._metadata_cache.save_tag(repository, tag, said)
        same = record is not None and record.digest == head.digest
        return CachedResult(head, REVALIDATED if same else MISS)

    async def _ask_head(self, repository: Repository, reference: Reference) -> ManifestSummary | None:
        """The upstream's HEAD; None if it does not tell all that its GET would.

        404 is no answer either: some registries do not know HEAD and say so like that.
        """
        client = self._upstream_access.upstream(repository)
        try:
            head = await client.head_manifest(repository, reference)
        except UpstreamNotFound:
            return None
        if head.digest is None or head.size is None or not names_a_kind(head.media_type):
            return None
        return ManifestSummary(head.digest, head.media_type, head.size)

    # --- instead of asking ---------------------------------------------------------------

    async def _find_fallback(
        self, repository: Repository, record: TagRecord | None, policy: FreshnessPolicy
    ) -> Fallback:
        """What may be answered should the upstream fail, or have the tag no more."""
        if record is None:
            return Fallback()
        is_young = may_serve_stale(record, policy, self._policy.now())
        return Fallback(await self._find_held(repository, record), is_young)

    async def _find_held(self, repository: Repository, record: TagRecord) -> Manifest | None:
        """The stored manifest of a tag: what it means, else what it meant before a HEAD saw it move."""
        held = await self._metadata_cache.find_manifest(repository, record.digest)
        if held is None and record.previous is not None:
            held = await self._metadata_cache.find_manifest(repository, record.previous)
        return held

    async def _or(
        self,
        ask: Callable[[bool], Awaitable[CachedResult[T]]],
        fallback: Fallback,
        repository: Repository,
        turn: Callable[[CachedResult[Manifest]], CachedResult[T]],
    ) -> CachedResult[T]:
        """The answer of ``ask``, which is told whether a stale one is at hand; or that stale one if
        the upstream fails or is slow.
        """
        try:
            return await ask(fallback.stale is not None)
        except UpstreamError as error:
            stale = fallback.stale
            if stale is not None and await self._may_serve_stale_manifest(repository, stale, error):
                return turn(CachedResult(stale, STALE, error.message))
            if stale is None or error.reason != "slow":
                raise
        except ManifestUnknown as error:
            is_gone = isinstance(error.__cause__, UpstreamNotFound)  # and not refused to us
            may_keep = self._policy.on_missing == "keep" and is_gone
            kept = fallback.manifest if may_keep else None
            if kept is None and may_keep and is_in_doubt():
                raise MetadataUnavailable from error
            if kept is None:
                raise
            return turn(CachedResult(kept, STALE, error.message))
        return await ask(False)  # what is stale is of no use: wait as those do who have nothing

    # --- incomplete images ---------------------------------------------------------------

    async def _unless_incomplete(self, repository: Repository, held: Manifest) -> CachedResult[Manifest]:
        """The stored manifest, unless its layers can neither be found here nor fetched (B39)."""
        if self._policy.incomplete == "serve":
            return CachedResult(held, HIT)
        trouble = self._upstream_access.find_unavailability(repository)
        if trouble is None:
            return CachedResult(held, HIT)
        gap = await self._completeness.find_gap(repository, held)
        if gap is None:
            return CachedResult(held, HIT)
        if self._policy.offline:
            message = f"{repository}@{held.digest}: {gap}, and the mirror is offline"
            raise ManifestUnknown(message)
        raise trouble

    async def _may_serve_stale_manifest(
        self, repository: Repository, held: Manifest, error: UpstreamError
    ) -> bool:
        """Whether a stored manifest is of use although its upstream failed with ``error``."""
        if self._policy.incomplete == "serve":
            return True
        if (
            isinstance(error, UpstreamRateLimited)
            and self._upstream_access.find_unavailability(repository) is None
        ):
            return True  # manifests are limited, and layers can still be had
        return await self._completeness.find_gap(repository, held) is None


def _head_of(answer: CachedResult[Manifest]) -> CachedResult[ManifestSummary]:
    manifest = answer.content
    head = ManifestSummary(manifest.digest, manifest.media_type, manifest.size)
    return CachedResult(head, answer.cache_status, answer.warning)
