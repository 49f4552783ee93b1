"""Manifests from upstreams: fetched, revalidated, and recorded.

``resolver.py`` decides when; the methods of ManifestFetcher make the upstream requests, and each is
shared by all clients that wait for the same manifest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from regmirror.config.schema import Freshness
from regmirror.errors import UpstreamNotFound
from regmirror.metadata.cache import MetadataCache
from regmirror.metadata.records import TagRecord
from regmirror.mirror.cache_status import CHANGED, HIT, MISS, REVALIDATED, STORED, CachedResult
from regmirror.mirror.upstream_access import UpstreamAccess
from regmirror.oci.manifests import Manifest, ManifestSummary, names_a_kind
from regmirror.oci.names import Digest, Reference, Repository, Tag


class ManifestFetcher:
    """Fetches manifests by the keys of ``freshness``; ``now`` is the wall clock."""

    def __init__(
        self,
        metadata_cache: MetadataCache,
        upstream_access: UpstreamAccess,
        freshness: Freshness,
        now: Callable[[], float],
    ) -> None:
        self._metadata_cache, self._upstream_access = metadata_cache, upstream_access
        self._freshness, self._now = freshness, now

    async def fetch(self, repository: Repository, reference: Reference) -> CachedResult[Manifest]:
        """GET the manifest and record it; raises UpstreamError."""
        client = self._upstream_access.get_client(repository)
        manifest = await client.get_manifest(repository, reference)
        tag = None if isinstance(reference, Digest) else reference
        await self._metadata_cache.save_manifest(repository, manifest, tag)
        return CachedResult(manifest, STORED)

    async def fetch_tag(self, repository: Repository, tag: Tag) -> CachedResult[Manifest]:
        """GET the manifest of a tag; a tag that the upstream no longer has is deleted (``on_missing``)."""
        try:
            return await self.fetch(repository, tag)
        except UpstreamNotFound:
            if self._freshness.on_missing == "forget" and not self._freshness.offline:
                await self._metadata_cache.delete_tag(repository, tag)
            raise

    async def revalidate(
        self, repository: Repository, tag: Tag, record: TagRecord | None
    ) -> CachedResult[Manifest]:
        """The present manifest of a tag: by HEAD if ``record`` still holds, else by GET."""
        newest = self._metadata_cache.get_cached_tag(repository, tag)
        if newest is not None and newest != record:  # another request has just revalidated it
            manifest = await self._metadata_cache.find_manifest(repository, newest.digest)
            if manifest is not None:
                return CachedResult(manifest, HIT)
        if record is None:
            return await self.fetch_tag(repository, tag)
        manifest = await self._metadata_cache.find_manifest(repository, record.digest)
        if manifest is None:
            return await self.fetch_tag(repository, tag)
        client = self._upstream_access.get_client(repository)
        try:
            digest = (await client.head_manifest(repository, tag)).digest
        except UpstreamNotFound:
            digest = None  # some registries do not support HEAD; GET decides
        if digest == record.digest:
            renewed = replace(record, checked_at=self._now())
            await self._metadata_cache.save_tag(repository, tag, renewed)
            return CachedResult(manifest, REVALIDATED)
        fetched = await self.fetch_tag(repository, tag)
        is_same = fetched.content.digest == record.digest
        return replace(fetched, cache_status=REVALIDATED if is_same else CHANGED)

    async def revalidate_head(
        self, repository: Repository, tag: Tag, record: TagRecord | None, stored: Manifest | None
    ) -> CachedResult[ManifestSummary]:
        """The present manifest's headers: by HEAD, and by GET if a header is missing from its response.

        ``stored`` is the tag's stored manifest; it is recorded as the previous one of a tag that moved.
        """
        head = await self.request_head(repository, tag)
        if head is None:
            return summarize(await self.fetch_tag(repository, tag))
        renewed = TagRecord(head.digest, head.media_type, head.size, self._now())
        if record is not None and await self._metadata_cache.find_manifest(repository, head.digest) is None:
            renewed = replace(renewed, previous=stored.digest if stored else None)
        await self._metadata_cache.save_tag(repository, tag, renewed)
        is_same = record is not None and record.digest == head.digest
        return CachedResult(head, REVALIDATED if is_same else MISS)

    async def request_head(self, repository: Repository, reference: Reference) -> ManifestSummary | None:
        """The headers of the upstream's HEAD; None if digest, size or media type is missing.

        None after a 404 as well: some registries respond so because they do not support HEAD.
        """
        client = self._upstream_access.get_client(repository)
        try:
            head = await client.head_manifest(repository, reference)
        except UpstreamNotFound:
            return None
        if head.digest is None or head.size is None or not names_a_kind(head.media_type):
            return None
        return ManifestSummary(head.digest, head.media_type, head.size)


def summary_of(manifest: Manifest) -> ManifestSummary:
    return ManifestSummary(manifest.digest, manifest.media_type, manifest.size)


def summarize(result: CachedResult[Manifest]) -> CachedResult[ManifestSummary]:
    return CachedResult(summary_of(result.content), result.cache_status, result.warning)
