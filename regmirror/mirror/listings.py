"""Lists: the tags of a repository, the referrers of a manifest, the catalog.

Lists change as tags do: a list is fetched upstream and kept in memory for a limited time. While the
upstream fails, the last list is served stale, else what the database has.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from regmirror.errors import ManifestUnknown, NameUnknown, UpstreamDenied, UpstreamError, UpstreamNotFound
from regmirror.lru import Lru, weigh_texts
from regmirror.metadata.cache import MetadataCache
from regmirror.metadata.list_queries import CatalogPage
from regmirror.mirror.cache_status import COALESCED, HIT, MISS, STALE, CachedResult
from regmirror.mirror.json_list import JsonList, Page
from regmirror.mirror.resolver import Resolver
from regmirror.mirror.upstream_access import UpstreamAccess
from regmirror.oci.manifests import Manifest, NotAManifest, parse_document
from regmirror.oci.names import Digest, Repository, Tag
from regmirror.offload import run_by_size
from regmirror.singleflight import SingleFlight

LISTS_BYTES: Final = 16 * 1024 * 1024  # in each worker
STORED_MAX: Final = 10_000  # stored tags read in one query
REFERRERS_MAX_AGE: Final = 60.0  # seconds; signatures are requested right after they are pushed

#: The key of a list of tags has an empty text, that of referrers the digest of their subject.
_Key = tuple[Repository, str]


class ListCache(Lru[_Key, tuple[float, JsonList]]):
    """Lists in memory, and the monotonic time at which each was fetched; it outlives a reload."""

    def __init__(self) -> None:
        super().__init__(LISTS_BYTES, _weigh)


def _weigh(key: _Key, cached: tuple[float, JsonList]) -> int:
    repository, digest = key
    return weigh_texts(repository.upstream, repository.name, digest, cached[1].text)


class Listings:
    """A list of tags is fresh for ``tag_max_age`` seconds of ``clock``, which is monotonic."""

    def __init__(
        self,
        *,
        resolver: Resolver,
        metadata_cache: MetadataCache,
        upstream_access: UpstreamAccess,
        tag_max_age: float,
        clock: Callable[[], float] = time.monotonic,
        cache: ListCache,
    ) -> None:
        self._resolver, self._metadata_cache = resolver, metadata_cache
        self._upstream_access = upstream_access
        self._tag_max_age, self._clock, self._cache = tag_max_age, clock, cache
        self._flight: SingleFlight[_Key, JsonList] = SingleFlight()

    async def close(self) -> None:
        """Cancel every upstream request that this object has started."""
        await self._flight.close()

    async def list_repositories(self, page: CatalogPage) -> list[str]:
        """Names of repositories with stored content, as the catalog lists them."""
        return await self._metadata_cache.list_repositories(page)

    async def list_tags(
        self, repository: Repository, last: str | None = None, limit: int | None = None
    ) -> CachedResult[Page]:
        """At most ``limit`` tags after ``last``, sorted; the stored ones while the upstream fails.

        Raises NameUnknown or another RegistryError.
        """

        async def request() -> JsonList:
            tags = await self._upstream_access.get_client(repository).list_tags(repository)
            return await asyncio.to_thread(lambda: JsonList.of(sorted(set(tags))))

        async def find_stored() -> JsonList | None:
            nonlocal limit
            limit = STORED_MAX if limit is None else limit
            found = await self._metadata_cache.list_tags(repository, last=last, limit=limit + 1)
            if found or (last and await self._metadata_cache.list_tags(repository, limit=1)):
                return JsonList.of(found)
            if self._upstream_access.offline:
                raise NameUnknown(f"{repository}: no tag is cached, and the mirror is offline")
            return None

        try:
            result = await self._get((repository, ""), self._tag_max_age, request, find_stored)
        except (UpstreamNotFound, UpstreamDenied) as error:
            raise NameUnknown(error.message) from error
        return CachedResult(result.content.page(last, limit), result.cache_status, result.warning)

    async def list_referrers(self, repository: Repository, digest: Digest) -> CachedResult[JsonList]:
        """Descriptors of the manifests with the subject ``digest``; empty if there are none.

        From an upstream without the referrers API the fallback tag is fetched instead (distribution
        specification, "Referrers Tag Schema"). Raises RegistryError.
        """
        max_age = min(self._tag_max_age, REFERRERS_MAX_AGE)

        async def request() -> JsonList:
            client = self._upstream_access.get_client(repository)
            try:
                found = await client.list_referrers(repository, digest)
            except (UpstreamNotFound, UpstreamDenied):
                found = None
            if found is None:
                return await self._fetch_fallback_tag(repository, digest)
            return await asyncio.to_thread(JsonList.of, found)

        async def find_stored() -> JsonList | None:
            manifests = await self._metadata_cache.list_referrers(repository, digest)
            return await asyncio.to_thread(lambda: JsonList.of(map(_describe, manifests))) or None

        return await self._get((repository, str(digest)), max_age, request, find_stored)

    async def _fetch_fallback_tag(self, repository: Repository, digest: Digest) -> JsonList:
        tag = Tag(f"{digest.algorithm}-{digest.encoded[:64]}")
        try:
            result = await self._resolver.get_manifest(repository, tag)
        except ManifestUnknown:
            return JsonList()
        return await run_by_size(result.content.size, _read_index, result.content.payload)

    async def _get(
        self,
        key: _Key,
        max_age: float,
        request: Callable[[], Awaitable[JsonList]],
        find_stored: Callable[[], Awaitable[JsonList | None]],
    ) -> CachedResult[JsonList]:
        """The list from memory, else the result of ``request``, else that of ``find_stored``."""
        cached = self._cache.get(key)
        if cached is not None and self._clock() - cached[0] < max_age:
            return CachedResult(cached[1], HIT)
        if self._upstream_access.offline:
            return CachedResult(cached[1] if cached else await find_stored() or JsonList(), HIT)
        joined = key in self._flight
        try:
            task = self._flight.start(key, request)
            fetched = await self._upstream_access.wait_for(
                key[0], task, has_stale=cached is not None, subject=key[1] or "list"
            )
        except (UpstreamNotFound, UpstreamDenied):
            self._cache.drop(key)
            raise
        except UpstreamError as error:
            stale = cached[1] if cached else await find_stored()
            if stale is None:
                raise
            return CachedResult(stale, STALE, error.message)
        self._cache.put(key, (self._clock(), fetched))
        return CachedResult(fetched, COALESCED if joined else MISS)


def _read_index(payload: bytes) -> JsonList:
    """The descriptors in an index."""
    try:
        listed = parse_document(payload).get("manifests")
    except NotAManifest:
        return JsonList()
    found = listed if isinstance(listed, list) else []
    return JsonList.of(item for item in found if isinstance(item, dict))


def _describe(manifest: Manifest) -> dict[str, Any]:
    """The manifest's descriptor as the referrers API lists it."""
    document = parse_document(manifest.payload)
    config = document.get("config")
    kind = document.get("artifactType") or (config.get("mediaType") if isinstance(config, dict) else None)
    described: dict[str, Any] = {
        "mediaType": manifest.media_type,
        "digest": str(manifest.digest),
        "size": manifest.size,
    }
    if kind:
        described["artifactType"] = kind
    if isinstance(document.get("annotations"), dict):
        described["annotations"] = document["annotations"]
    return described
