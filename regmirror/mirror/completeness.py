"""Whether an image can be pulled from what is stored: its manifest alone is no use to anybody.

Some clients (podman) choose a registry by its manifest and ask no other one for the layers. So a
manifest whose layers can neither be found here nor fetched is better not served (B39). What it
takes to find that out is bounded: a costly verdict is kept for a second, and costly manifests are
read one after the other, in a thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from regmirror.blobs.local import LocalBlobStore
from regmirror.lru import Lru, weigh_texts
from regmirror.metadata.bounded_reads import is_in_doubt
from regmirror.metadata.cache import MetadataCache
from regmirror.mirror.possession import COMMON
from regmirror.oci.manifests import Manifest, NotAManifest, parse_document, references
from regmirror.oci.names import Digest, Repository
from regmirror.offload import LARGE, run_by_size

DEPTH_MAX: Final = 3  # an index may name indexes
MANIFESTS_MAX: Final = 2_000  # manifests that are read for one verdict
COSTLY: Final = 50  # manifests read for a verdict that is kept
VERDICT_MAX_AGE: Final = 1.0  # seconds
VERDICTS_BYTES: Final = 1024 * 1024

_Key = tuple[Repository, Digest]


@dataclass(slots=True)
class _Look:
    """One look at an image: of each manifest the gap that was found so far."""

    repository: Repository
    gaps: dict[Digest, str | None] = field(default_factory=dict)  # no more than MANIFESTS_MAX


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a manifest names: in words what is missing of its own blobs, those blobs, its children."""

    gap: str | None = None
    blobs: list[Digest] = field(default_factory=list)
    children: list[Digest] = field(default_factory=list)


class Completeness:
    """Looks at the store and at what is known of manifests; asks no upstream."""

    def __init__(
        self,
        metadata_cache: MetadataCache,
        store: LocalBlobStore,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metadata_cache, self._store, self._clock = metadata_cache, store, clock
        self._verdicts: Lru[_Key, tuple[float, str | None]] = Lru(VERDICTS_BYTES, _weigh)
        self._turn = asyncio.Lock()

    async def find_gap(self, repository: Repository, manifest: Manifest) -> str | None:
        """What is missing here of the image, in words; None if it can be pulled.

        Of an index one complete image is enough: nobody pulls the others.
        """
        key = (repository, manifest.digest)
        if manifest.size < LARGE:
            return await self._judge(key, manifest)
        async with self._turn:  # later requests find the verdict of the first
            return await self._judge(key, manifest)

    async def _judge(self, key: _Key, manifest: Manifest) -> str | None:
        verdict = self._verdicts.get(key)
        if verdict is not None and self._clock() < verdict[0]:
            return verdict[1]
        look = _Look(key[0])
        gap = await self._find_gap(look, manifest, 0)
        is_costly = manifest.size >= LARGE or len(look.gaps) >= COSTLY
        if is_costly and not is_in_doubt():
            self._verdicts.put(key, (self._clock() + VERDICT_MAX_AGE, gap))
        return gap

    async def _find_gap(self, look: _Look, manifest: Manifest, depth: int) -> str | None:
        parts = await run_by_size(manifest.size, self._examine, manifest.payload)
        if parts.gap is not None:
            return parts.gap
        if unproven := await self._metadata_cache.count_unlinked(look.repository, parts.blobs):
            return f"{unproven} of its blobs were stored through other repositories only"
        if parts.children and depth < DEPTH_MAX:
            for child in parts.children:
                if await self._is_complete(look, child, depth + 1):
                    return None
        if parts.children:
            return f"none of its {len(parts.children)} platform images is completely cached"
        return None

    async def _is_complete(self, look: _Look, digest: Digest, depth: int) -> bool:
        if digest not in look.gaps:
            if len(look.gaps) >= MANIFESTS_MAX:
                return False
            look.gaps[digest] = "not stored"
            held = await self._metadata_cache.find_manifest(look.repository, digest)
            if held is not None:
                look.gaps[digest] = await self._find_gap(look, held, depth)
        return look.gaps[digest] is None

    def _examine(self, payload: bytes) -> _Parts:
        try:
            named = references(parse_document(payload))
        except NotAManifest:
            return _Parts()
        children = [item.digest for item in named if item.role == "manifest"]
        own = [item for item in named if item.role in ("config", "layer")]
        wanted = {item.digest: item.role for item in own if item.fetchable and item.digest not in COMMON}
        return _Parts(self._gap(wanted), list(wanted), children)

    def _gap(self, wanted: dict[Digest, str]) -> str | None:
        missing = {digest for digest in wanted if not self._store.path(digest).exists()}
        if not missing:
            return None
        layers = [digest for digest, role in wanted.items() if role == "layer"]
        stored = len(set(layers) - missing)
        without = ", and not its config" if len(missing) > len(layers) - stored else ""
        return f"{stored} of its {len(layers)} layers are stored{without}"


def _weigh(key: _Key, verdict: tuple[float, str | None]) -> int:
    repository, digest = key
    return weigh_texts(repository.upstream, repository.name, digest, verdict[1] or "")
