"""Whether an image can be pulled from the store alone.

Some clients (podman) choose a registry by its manifest and request the layers nowhere else. So a
manifest whose layers are neither stored nor available upstream is not served (B39). The cost of the
decision is bounded: an expensive verdict is kept for a second, and large manifests are parsed one
after the other, in a thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from regmirror.blobs.base import BlobStore
from regmirror.lru import Lru, weigh_texts
from regmirror.metadata.bounded_access import has_failed_read
from regmirror.metadata.cache import MetadataCache
from regmirror.mirror.possession import COMMON
from regmirror.oci.manifests import Manifest, NotAManifest, parse_document, references
from regmirror.oci.names import Digest, Repository
from regmirror.offload import LARGE, run_by_size

DEPTH_MAX: Final = 3  # of indexes within indexes
MANIFESTS_MAX: Final = 2_000  # manifests read for one verdict
EXPENSIVE: Final = 50  # manifests read for a verdict that is kept
VERDICT_MAX_AGE: Final = 1.0  # seconds
VERDICTS_BYTES: Final = 1024 * 1024

_Key = tuple[Repository, Digest]


@dataclass(slots=True)
class _Inspection:
    """One search for a complete image: the gap of every manifest that was inspected so far."""

    repository: Repository
    gaps: dict[Digest, str | None] = field(default_factory=dict)  # at most MANIFESTS_MAX


@dataclass(frozen=True, slots=True)
class _Content:
    """The blobs and child manifests that a manifest names; ``gap`` describes its missing blobs."""

    gap: str | None = None
    blobs: list[Digest] = field(default_factory=list)
    children: list[Digest] = field(default_factory=list)


class Completeness:
    """Inspects files and metadata; makes no upstream request. ``clock`` is monotonic."""

    def __init__(
        self,
        metadata_cache: MetadataCache,
        store: BlobStore,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metadata_cache, self._store, self._clock = metadata_cache, store, clock
        self._verdicts: Lru[_Key, tuple[float, str | None]] = Lru(VERDICTS_BYTES, _weigh)
        self._large = asyncio.Lock()

    async def find_gap(self, repository: Repository, manifest: Manifest) -> str | None:
        """What is not stored of the image, as a phrase for an error; None if it can be pulled.

        An index is complete with one complete image: a client pulls one platform.
        """
        key = (repository, manifest.digest)
        if manifest.size < LARGE:
            return await self._find_verdict(key, manifest)
        async with self._large:  # later requests find the verdict of the first
            return await self._find_verdict(key, manifest)

    async def _find_verdict(self, key: _Key, manifest: Manifest) -> str | None:
        verdict = self._verdicts.get(key)
        if verdict is not None and self._clock() < verdict[0]:
            return verdict[1]
        inspection = _Inspection(key[0])
        gap = await self._find_gap(inspection, manifest, 0)
        is_expensive = manifest.size >= LARGE or len(inspection.gaps) >= EXPENSIVE
        if is_expensive and not has_failed_read():
            self._verdicts.put(key, (self._clock() + VERDICT_MAX_AGE, gap))
        return gap

    async def _find_gap(self, inspection: _Inspection, manifest: Manifest, depth: int) -> str | None:
        content = await run_by_size(manifest.size, self._inspect, manifest.payload)
        if content.gap is not None:
            return content.gap
        unlinked = await self._metadata_cache.count_unlinked(inspection.repository, content.blobs)
        if unlinked:
            return f"{unlinked} of its blobs are cached for other repositories only"
        if content.children and depth < DEPTH_MAX:
            for child in content.children:
                if await self._is_complete(inspection, child, depth + 1):
                    return None
        if content.children:
            return f"none of its {len(content.children)} platform images is completely cached"
        return None

    async def _is_complete(self, inspection: _Inspection, digest: Digest, depth: int) -> bool:
        gaps = inspection.gaps
        if digest not in gaps:
            if len(gaps) >= MANIFESTS_MAX:
                return False
            gaps[digest] = "not cached"
            manifest = await self._metadata_cache.find_manifest(inspection.repository, digest)
            if manifest is not None:
                gaps[digest] = await self._find_gap(inspection, manifest, depth)
        return gaps[digest] is None

    def _inspect(self, payload: bytes) -> _Content:
        try:
            named = references(parse_document(payload))
        except NotAManifest:
            return _Content()
        children = [item.digest for item in named if item.role == "manifest"]
        own = [item for item in named if item.role in ("config", "layer")]
        roles = {item.digest: item.role for item in own if item.fetchable and item.digest not in COMMON}
        return _Content(self._describe_gap(roles), list(roles), children)

    def _describe_gap(self, roles: dict[Digest, str]) -> str | None:
        missing = {digest for digest in roles if not self._store.exists(digest)}
        if not missing:
            return None
        layers = [digest for digest, role in roles.items() if role == "layer"]
        cached = len(set(layers) - missing)
        config = ", without its config" if len(missing) > len(layers) - cached else ""
        return f"{cached} of its {len(layers)} layers are cached{config}"


def _weigh(key: _Key, verdict: tuple[float, str | None]) -> int:
    repository, digest = key
    return weigh_texts(repository.upstream, repository.name, digest, verdict[1] or "")
