"""Lists: a repository's tags, what refers to a manifest, which repositories there are.

Lists move as tags do, so they are asked upstream, kept for a moment, and answered from what is
known here while the upstream fails.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from regmirror.errors import ManifestUnknown, NameUnknown, UpstreamDenied, UpstreamError, UpstreamNotFound
from regmirror.lru import Lru, weigh_texts
from regmirror.metadata.cache import MetadataCache
from regmirror.metadata.list_queries import CatalogPage
from regmirror.mirror.cache_status import COALESCED, HIT, MISS, STALE, CachedResult
from regmirror.mirror.json_list import JsonList, Page
from regmirror.mirror.mirror import Mirror
from regmirror.oci.manifests import Manifest, NotAManifest, parse_document
from regmirror.oci.names import Digest, Repository, Tag
from regmirror.offload import run_by_size
from regmirror.singleflight import SingleFlight
from regmirror.upstream.client import UpstreamClient

KEPT: Final = 16 * 1024 * 1024  # bytes of lists in memory, in each worker
STORED_MAX: Final = 10_000  # tags that are read at once of those that are stored
REFERRERS_MAX_AGE: Final = 60.0  # seconds; signatures are asked for right after being made

#: A list of tags is kept under an empty text, one of referrers under its subject's digest.
_Key = tuple[Repository, str]


class KeptLists(Lru[_Key, tuple[float, JsonList]]):
    """Lists, and when they were asked for."""

    def __init__(self) -> None:
        super().__init__(KEPT, _weigh)


def _weigh(key: _Key, kept: tuple[float, JsonList]) -> int:
    repository, digest = key
    return weigh_texts(repository.upstream, repository.name, digest, kept[1].text)


class Listings:
    """``tag_max_age`` seconds a list of tags is kept; ``clock`` is monotonic; ``kept`` are the lists
    of the one before, if it is replaced.
    """

    def __init__(
        self,
        mirror: Mirror,
        metadata_cache: MetadataCache,
        upstreams: Mapping[str, UpstreamClient],
        *,
        tag_max_age: float,
        offline: bool = False,
        clock: Callable[[], float] = time.monotonic,
        kept: KeptLists | None = None,
    ) -> None:
        self._mirror, self._metadata_cache, self._upstreams = mirror, metadata_cache, upstreams
        self._tag_max_age, self._offline, self._clock = tag_max_age, offline, clock
        self._kept = KeptLists() if kept is None else kept
        self._flight: SingleFlight[_Key, JsonList] = SingleFlight()

    async def close(self) -> None:
        await self._flight.close()

    async def repositories(self, page: CatalogPage) -> list[str]:
        """Names of repositories of which something is stored, as the catalog has them."""
        return await self._metadata_cache.list_repositories(page)

    async def tags(
        self, repository: Repository, last: str | None = None, limit: int | None = None
    ) -> CachedResult[Page]:
        """At most ``limit`` tags after ``last``, sorted; stored ones if the upstream cannot be asked."""

        async def ask() -> JsonList:
            tags = await self._upstreams[repository.upstream].list_tags(repository)
            return await asyncio.to_thread(lambda: JsonList.of(sorted(set(tags))))

        async def known() -> JsonList | None:
            nonlocal limit
            limit = STORED_MAX if limit is None else limit
            found = await self._metadata_cache.list_tags(repository, last=last, limit=limit + 1)
            if found or (last and await self._metadata_cache.list_tags(repository, limit=1)):
                return JsonList.of(found)
            if self._offline:
                raise NameUnknown(f"{repository} has no tags stored here, and the mirror is offline")
            return None

        try:
            answer = await self._answer((repository, ""), self._tag_max_age, ask, known)
        except (UpstreamNotFound, UpstreamDenied) as error:
            raise NameUnknown(error.message) from error
        return CachedResult(answer.content.page(last, limit), answer.cache_status, answer.warning)

    async def referrers(self, repository: Repository, digest: Digest) -> CachedResult[JsonList]:
        """Descriptors of what has ``digest`` as its subject; empty where nothing has.

        An upstream without the referrers API is asked for the fallback tag instead
        (distribution specification, "Referrers Tag Schema").
        """
        max_age = min(self._tag_max_age, REFERRERS_MAX_AGE)

        async def ask() -> JsonList:
            client = self._upstreams[repository.upstream]
            try:
                found = await client.list_referrers(repository, digest)
            except (UpstreamNotFound, UpstreamDenied):
                found = None
            if found is None:
                return await self._by_tag(repository, digest)
            return await asyncio.to_thread(JsonList.of, found)

        async def known() -> JsonList | None:
            manifests = await self._metadata_cache.list_referrers(repository, digest)
            return await asyncio.to_thread(lambda: JsonList.of(map(_describe, manifests))) or None

        return await self._answer((repository, str(digest)), max_age, ask, known)

    async def _by_tag(self, repository: Repository, digest: Digest) -> JsonList:
        tag = Tag(f"{digest.algorithm}-{digest.encoded[:64]}")
        try:
            answer = await self._mirror.manifest(repository, tag)
        except ManifestUnknown:
            return JsonList()
        return await run_by_size(answer.content.size, _read_index, answer.content.payload)

    async def _answer(
        self,
        key: _Key,
        max_age: float,
        ask: Callable[[], Awaitable[JsonList]],
        known: Callable[[], Awaitable[JsonList | None]],
    ) -> CachedResult[JsonList]:
        """The list that is kept, else what ``ask`` returns, else what is ``known`` here, if anything."""
        kept = self._kept.get(key)
        if kept is not None and self._clock() - kept[0] < max_age:
            return CachedResult(kept[1], HIT)
        if self._offline:
            return CachedResult(kept[1] if kept else await known() or JsonList(), HIT)
        joined = key in self._flight
        try:
            task = self._flight.start(key, ask)
            found = await self._mirror.upstream_access.wait_for(
                key[0], task, has_stale=kept is not None, subject=key[1] or "list"
            )
        except (UpstreamNotFound, UpstreamDenied):
            self._kept.drop(key)
            raise
        except UpstreamError as error:
            stored = kept[1] if kept else await known()
            if stored is None:
                raise
            return CachedResult(stored, STALE, error.message)
        self._kept.put(key, (self._clock(), found))
        return CachedResult(found, COALESCED if joined else MISS)


def _read_index(payload: bytes) -> JsonList:
    """The descriptors that an index lists."""
    try:
        listed = parse_document(payload).get("manifests")
    except NotAManifest:
        return JsonList()
    found = listed if isinstance(listed, list) else []
    return JsonList.of(item for item in found if isinstance(item, dict))


def _describe(manifest: Manifest) -> dict[str, Any]:
    """The descriptor that the referrers API gives for a manifest."""
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
