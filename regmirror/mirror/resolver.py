"""Manifests by tag and by digest: from memory, from the database, from the upstream, or stale.

A digest is immutable: a stored manifest is served. A tag is served while it is fresh, and revalidated
upstream after that: by one HEAD if its manifest is stored, else by one GET. While the upstream fails,
the stored manifest is served stale, unless its image is incomplete (``completeness.py``).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from regmirror.config.schema import Freshness
from regmirror.errors import (
    ManifestUnknown,
    MetadataUnavailable,
    UpstreamError,
    UpstreamNotFound,
    UpstreamRateLimited,
)
from regmirror.metadata.bounded_access import has_failed_read
from regmirror.metadata.cache import MetadataCache
from regmirror.metadata.records import TagRecord
from regmirror.mirror.cache_status import HIT, MISS, STALE, CachedResult
from regmirror.mirror.completeness import Completeness
from regmirror.mirror.freshness import FreshnessPolicy, FreshnessRules, is_fresh, may_serve_stale
from regmirror.mirror.manifest_fetcher import ManifestFetcher, summarize, summary_of
from regmirror.mirror.upstream_access import RequestKey, UpstreamAccess
from regmirror.oci.manifests import Manifest, ManifestSummary
from regmirror.oci.names import Digest, Reference, Repository, Tag
from regmirror.singleflight import SingleFlight

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Fallback:
    """The stored manifest of a tag; ``stale`` is the same if its age allows to serve it stale."""

    manifest: Manifest | None = None
    stale: Manifest | None = None


class Resolver:
    """The manifests of every upstream, by the keys of ``freshness``; ``now`` is the wall clock."""

    def __init__(
        self,
        *,
        metadata_cache: MetadataCache,
        upstream_access: UpstreamAccess,
        completeness: Completeness,
        freshness: Freshness,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._metadata_cache, self._upstream_access = metadata_cache, upstream_access
        self._completeness, self._freshness, self._now = completeness, freshness, now
        self._fetcher = ManifestFetcher(metadata_cache, upstream_access, freshness, now)
        self._rules = FreshnessRules.of(freshness)
        self._upstreams, self._offline = upstream_access.upstreams, freshness.offline
        self._manifests: SingleFlight[RequestKey, CachedResult[Manifest]] = SingleFlight()
        self._heads: SingleFlight[RequestKey, CachedResult[ManifestSummary]] = SingleFlight()

    async def close(self) -> None:
        """Cancel every upstream request that this object has started."""
        await self._manifests.close()
        await self._heads.close()

    async def get_manifest(self, repository: Repository, reference: Reference) -> CachedResult[Manifest]:
        """The manifest, and notes the pull; raises ManifestUnknown or another RegistryError."""
        if isinstance(reference, Digest):
            result = await self._get_by_digest(repository, reference)
        else:
            result = await self._get_by_tag(repository, reference)
            self._metadata_cache.note_tag_pull(repository, reference)
        self._metadata_cache.note_manifest_pull(repository, result.content.digest)
        return result

    async def head_manifest(
        self, repository: Repository, reference: Reference
    ) -> CachedResult[ManifestSummary]:
        """Media type, digest and size of the manifest, fetched by HEAD alone where possible.

        For a tag notes the pull, because most clients resolve tags by HEAD. Raises as ``get_manifest``.
        """
        if isinstance(reference, Digest):
            return await self._head_by_digest(repository, reference)
        result = await self._head_by_tag(repository, reference)
        self._metadata_cache.note_tag_pull(repository, reference)
        return result

    # --- from memory -----------------------------------------------------------------------

    def get_cached_manifest(self, repository: Repository, reference: Reference) -> Manifest | None:
        """The manifest that ``get_manifest`` would return now as a hit, and notes the pull.

        None if memory alone cannot decide that.
        """
        manifest = self._find_cached(repository, reference)
        if manifest is not None:
            if isinstance(reference, Tag):
                self._metadata_cache.note_tag_pull(repository, reference)
            self._metadata_cache.note_manifest_pull(repository, manifest.digest)
        return manifest

    def get_cached_head(self, repository: Repository, reference: Reference) -> ManifestSummary | None:
        """What ``head_manifest`` would return now as a hit, as ``get_cached_manifest``."""
        if isinstance(reference, Digest):
            manifest = self._find_cached(repository, reference)
            return None if manifest is None else summary_of(manifest)
        record = self._find_fresh_tag(repository, reference)
        if record is None or not self._has_blobs(repository):
            return None
        self._metadata_cache.note_tag_pull(repository, reference)
        return ManifestSummary(record.digest, record.media_type, record.size)

    def _find_cached(self, repository: Repository, reference: Reference) -> Manifest | None:
        if not self._has_blobs(repository):
            return None  # the image might be incomplete
        if isinstance(reference, Digest):
            return self._metadata_cache.get_cached_manifest(repository, reference)
        record = self._find_fresh_tag(repository, reference)
        return None if record is None else self._metadata_cache.get_cached_manifest(repository, record.digest)

    def _find_fresh_tag(self, repository: Repository, tag: Tag) -> TagRecord | None:
        record = self._metadata_cache.get_cached_tag(repository, tag)
        if record is None or not is_fresh(record, self._rules.policy(repository, tag), self._now()):
            return None
        return record

    def _has_blobs(self, repository: Repository) -> bool:
        """Whether blobs that are not stored can be fetched, as far as memory knows."""
        if self._offline:
            return False
        return self._upstreams[repository.upstream].health.cached_unavailability("blobs") is None

    # --- by digest -------------------------------------------------------------------------

    async def _get_by_digest(self, repository: Repository, digest: Digest) -> CachedResult[Manifest]:
        manifest = await self._metadata_cache.find_manifest(repository, digest)
        if manifest is not None:
            return await self._hit(repository, manifest)
        return await self._fetch_digest(repository, digest)

    async def _head_by_digest(self, repository: Repository, digest: Digest) -> CachedResult[ManifestSummary]:
        manifest = await self._metadata_cache.find_manifest(repository, digest)
        if manifest is not None:
            return summarize(await self._hit(repository, manifest))

        async def work() -> CachedResult[ManifestSummary]:
            head = await self._fetcher.request_head(repository, digest)
            if head is None:
                return summarize(await self._fetcher.fetch(repository, digest))
            return CachedResult(head, MISS)

        return await self._upstream_access.share(self._heads, (repository, digest), work)

    async def _fetch_digest(
        self, repository: Repository, digest: Digest, *, has_stale: bool = False
    ) -> CachedResult[Manifest]:
        """Fetch a manifest that the repository's own upstream has not sent yet.

        It is fetched even if another repository has stored it: the bytes from this upstream are the
        only proof that this repository has it.
        """

        async def work() -> CachedResult[Manifest]:
            # An earlier fetch may have ended during the query of the database.
            manifest = await self._metadata_cache.find_manifest(repository, digest)
            if manifest is not None:
                return CachedResult(manifest, HIT)
            return await self._fetcher.fetch(repository, digest)

        key = (repository, digest)
        return await self._upstream_access.share(self._manifests, key, work, has_stale=has_stale)

    # --- by tag ----------------------------------------------------------------------------

    async def _get_by_tag(self, repository: Repository, tag: Tag) -> CachedResult[Manifest]:
        policy = self._rules.policy(repository, tag)
        record = await self._find_tag(repository, tag, policy)
        if record is not None and self._is_current(record, policy):
            return await self._get_current(repository, tag, record)

        fallback = await self._find_fallback(repository, record, policy)
        if fallback.stale and (reason := self._find_reserve_reason(repository)):
            return CachedResult(fallback.stale, STALE, reason)

        async def request(has_stale: bool) -> CachedResult[Manifest]:
            return await self._upstream_access.share(
                self._manifests,
                (repository, tag),
                lambda: self._fetcher.revalidate(repository, tag, record),
                has_stale=has_stale,
            )

        return await self._request_or_stale(repository, request, fallback, lambda result: result)

    async def _head_by_tag(self, repository: Repository, tag: Tag) -> CachedResult[ManifestSummary]:
        policy = self._rules.policy(repository, tag)
        record = await self._find_tag(repository, tag, policy)
        if record is not None and self._is_current(record, policy):
            if not self._has_blobs(repository):  # a GET after this HEAD must not fail as incomplete
                return summarize(await self._get_current(repository, tag, record))
            return CachedResult(ManifestSummary(record.digest, record.media_type, record.size), HIT)
        if (repository, tag) in self._manifests:
            return summarize(await self._get_by_tag(repository, tag))

        fallback = await self._find_fallback(repository, record, policy)
        if fallback.stale and (reason := self._find_reserve_reason(repository)):
            return summarize(CachedResult(fallback.stale, STALE, reason))

        async def request(has_stale: bool) -> CachedResult[ManifestSummary]:
            return await self._upstream_access.share(
                self._heads,
                (repository, tag),
                lambda: self._fetcher.revalidate_head(repository, tag, record, fallback.manifest),
                has_stale=has_stale,
            )

        return await self._request_or_stale(repository, request, fallback, summarize)

    async def _find_tag(self, repository: Repository, tag: Tag, policy: FreshnessPolicy) -> TagRecord | None:
        record = self._metadata_cache.get_cached_tag(repository, tag)
        if record is None or not is_fresh(record, policy, self._now()):
            # Another worker may have revalidated it: the database has the newest record.
            record = await self._metadata_cache.find_tag(repository, tag)
        return record

    def _is_current(self, record: TagRecord, policy: FreshnessPolicy) -> bool:
        return self._offline or is_fresh(record, policy, self._now())

    def _find_reserve_reason(self, repository: Repository) -> str | None:
        """Why a cached tag should not be revalidated now (``rate_limit_reserve``)."""
        return self._upstreams[repository.upstream].health.find_reserve_reason()

    async def _get_current(
        self, repository: Repository, tag: Tag, record: TagRecord
    ) -> CachedResult[Manifest]:
        """The manifest of a tag that needs no revalidation; after a HEAD only its digest is stored."""
        manifest = await self._metadata_cache.find_manifest(repository, record.digest)
        if manifest is None and self._offline:
            manifest = await self._find_stored(repository, record)
        if manifest is not None:
            return await self._hit(repository, manifest)

        async def request(has_stale: bool) -> CachedResult[Manifest]:
            try:
                return await self._fetch_digest(repository, record.digest, has_stale=has_stale)
            except ManifestUnknown:  # the tag has moved, and its old manifest was deleted
                return await self._upstream_access.share(
                    self._manifests, (repository, tag), lambda: self._fetcher.fetch_tag(repository, tag)
                )

        stored = await self._find_stored(repository, record)
        return await self._request_or_stale(
            repository, request, Fallback(stored, stored), lambda result: result
        )

    # --- stale -----------------------------------------------------------------------------

    async def _request_or_stale(
        self,
        repository: Repository,
        request: Callable[[bool], Awaitable[CachedResult[T]]],
        fallback: Fallback,
        convert: Callable[[CachedResult[Manifest]], CachedResult[T]],
    ) -> CachedResult[T]:
        """The result of ``request``, or the converted fallback if the upstream fails or is slow.

        ``request`` takes whether a stale response is at hand. If the upstream is slow and the stale
        image is incomplete, ``request`` is repeated with the deadline of content that is not cached.
        """
        stale = fallback.stale
        try:
            return await request(stale is not None)
        except UpstreamError as error:
            if stale is not None and await self._may_serve_after(error, repository, stale):
                return convert(CachedResult(stale, STALE, error.message))
            if stale is None or error.reason != "slow":
                raise
        except ManifestUnknown as error:
            is_deleted = isinstance(error.__cause__, UpstreamNotFound)  # not: access was denied
            if not is_deleted or self._freshness.on_missing != "keep":
                raise
            if fallback.manifest is not None:
                return convert(CachedResult(fallback.manifest, STALE, error.message))
            if has_failed_read():
                raise MetadataUnavailable from error
            raise
        return await request(False)

    async def _may_serve_after(
        self, error: UpstreamError, repository: Repository, manifest: Manifest
    ) -> bool:
        """Whether a stored manifest may be served although its upstream failed with ``error``."""
        if self._freshness.incomplete == "serve":
            return True
        if isinstance(error, UpstreamRateLimited) and self._has_blobs(repository):
            return True  # only manifests are limited
        return await self._completeness.find_gap(repository, manifest) is None

    async def _find_fallback(
        self, repository: Repository, record: TagRecord | None, policy: FreshnessPolicy
    ) -> Fallback:
        """What may be served if the upstream fails, or no longer has the tag."""
        if record is None:
            return Fallback()
        may_be_stale = may_serve_stale(record, policy, self._now())
        stored = await self._find_stored(repository, record)
        return Fallback(stored, stored if may_be_stale else None)

    async def _find_stored(self, repository: Repository, record: TagRecord) -> Manifest | None:
        """The stored manifest of a tag: the present one, else the one before a HEAD saw the tag move."""
        manifest = await self._metadata_cache.find_manifest(repository, record.digest)
        if manifest is None and record.previous is not None:
            manifest = await self._metadata_cache.find_manifest(repository, record.previous)
        return manifest

    async def _hit(self, repository: Repository, manifest: Manifest) -> CachedResult[Manifest]:
        """The stored manifest; raises if its blobs are neither stored nor available upstream (B39)."""
        if self._freshness.incomplete == "serve" or self._has_blobs(repository):
            return CachedResult(manifest, HIT)
        gap = await self._completeness.find_gap(repository, manifest)
        if gap is not None:
            if self._offline:
                message = f"{repository}@{manifest.digest}: {gap}, and the mirror is offline"
                raise ManifestUnknown(message)
            if error := self._upstream_access.find_unavailability(repository):
                raise error
        return CachedResult(manifest, HIT)
