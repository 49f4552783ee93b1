"""Lists: a repository's tags, what refers to a manifest, which repositories there are.

Lists move as tags do, so they are asked upstream, kept for a moment, and answered from what is
known here while the upstream fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from regmirror.errors import ManifestUnknown, NameUnknown, UpstreamDenied, UpstreamError, UpstreamNotFound
from regmirror.knowledge import Knowledge
from regmirror.lru import Lru
from regmirror.manifests import Manifest, NotAManifest, parse_document
from regmirror.mirror import Mirror
from regmirror.names import Digest, Repository, Tag
from regmirror.outcomes import COALESCED, HIT, MISS, STALE, Answer
from regmirror.singleflight import SingleFlight
from regmirror.upstream.client import UpstreamClient

KEPT: Final = 1_000  # lists in memory, of each kind
REFERRERS_MAX_AGE: Final = 60.0  # seconds; signatures are asked for right after being made

Descriptors = list[dict[str, Any]]
#: Lists, and when they were asked for; those of referrers also by the digest.
KeptLists = Lru[tuple[Repository, str], tuple[float, Any]]


class Listings:
    """``tag_max_age`` seconds a list of tags is kept; ``clock`` is monotonic; ``kept`` are the lists
    of the one before, if it is replaced.
    """

    def __init__(
        self,
        mirror: Mirror,
        knowledge: Knowledge,
        upstreams: Mapping[str, UpstreamClient],
        *,
        tag_max_age: float,
        offline: bool = False,
        clock: Callable[[], float] = time.monotonic,
        kept: KeptLists | None = None,
    ) -> None:
        self._mirror, self._knowledge, self._upstreams = mirror, knowledge, upstreams
        self._tag_max_age, self._offline, self._clock = tag_max_age, offline, clock
        self._kept = KeptLists(KEPT, lambda _key, _kept: 1) if kept is None else kept
        self._flight: SingleFlight[tuple[Repository, str], Any] = SingleFlight()

    async def close(self) -> None:
        await self._flight.close()

    async def repositories(self) -> list[Repository]:
        """Every repository of which something is stored."""
        return await self._knowledge.list_repositories()

    async def tags(self, repository: Repository) -> Answer[list[str]]:
        """All tags, sorted; those stored here if the upstream cannot be asked."""

        async def ask() -> list[str]:
            return sorted(set(await self._upstreams[repository.upstream].list_tags(repository)))

        async def known() -> list[str]:
            return await self._knowledge.list_tags(repository)

        try:
            answer = await self._answer((repository, ""), self._tag_max_age, ask, known)
        except (UpstreamNotFound, UpstreamDenied) as error:
            raise NameUnknown(error.message) from error
        if self._offline and not answer.content:
            raise NameUnknown(f"{repository} has no tags stored here, and the mirror is offline")
        return answer

    async def referrers(self, repository: Repository, digest: Digest) -> Answer[Descriptors]:
        """Descriptors of what has ``digest`` as its subject; empty where nothing has.

        An upstream without the referrers API is asked for the fallback tag instead
        (distribution specification, "Referrers Tag Schema").
        """
        max_age = min(self._tag_max_age, REFERRERS_MAX_AGE)

        async def ask() -> Descriptors:
            client = self._upstreams[repository.upstream]
            try:
                found = await client.list_referrers(repository, digest)
            except (UpstreamNotFound, UpstreamDenied):
                found = None
            return await self._by_tag(repository, digest) if found is None else found

        async def known() -> Descriptors:
            manifests = await self._knowledge.list_referrers(repository, digest)
            return [_describe(manifest) for manifest in manifests]

        return await self._answer((repository, str(digest)), max_age, ask, known)

    async def _by_tag(self, repository: Repository, digest: Digest) -> Descriptors:
        tag = Tag(f"{digest.algorithm}-{digest.encoded[:64]}")
        try:
            answer = await self._mirror.manifest(repository, tag)
            listed = parse_document(answer.content.payload).get("manifests")
        except (ManifestUnknown, NotAManifest):
            return []
        return [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []

    async def _answer(
        self,
        key: tuple[Repository, str],
        max_age: float,
        ask: Callable[[], Any],
        known: Callable[[], Any],
    ) -> Answer[Any]:
        kept = self._kept.get(key)
        if kept is not None and self._clock() - kept[0] < max_age:
            return Answer(kept[1], HIT)
        if self._offline:
            return Answer(kept[1] if kept else await known(), HIT)
        joined = key in self._flight
        try:
            task = self._flight.start(key, ask)
            found = await self._mirror.asking.wait_for(key[0], task, has_stale=kept is not None)
        except (UpstreamNotFound, UpstreamDenied):
            self._kept.drop(key)
            raise
        except UpstreamError as error:
            stored = kept[1] if kept else await known()
            if not stored:
                raise
            return Answer(stored, STALE, error.message)
        self._kept.put(key, (self._clock(), found))
        return Answer(found, COALESCED if joined else MISS)


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
