"""The parts that the mirror is built on: a real metadata cache, and an upstream of plain values."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from regmirror.config.schema import Freshness
from regmirror.errors import UpstreamNotFound
from regmirror.metadata.cache import MetadataCache
from regmirror.metadata.store import MetadataStore
from regmirror.metadata.upgrade import database_path, upgrade
from regmirror.mirror.completeness import Completeness
from regmirror.mirror.upstream_access import UpstreamAccess
from regmirror.oci.manifests import OCI_MANIFEST, Manifest
from regmirror.oci.names import Digest, Reference, Repository, Tag
from regmirror.upstream.client import UpstreamClient
from regmirror.upstream.health.monitor import Health
from regmirror.upstream.health.shared_state import SharedState

NAME = "registry.test"
APP, OTHER = Repository(NAME, "team/app"), Repository(NAME, "team/other")
TAG = Tag("1")
MAX_AGE = 300.0


def manifest(text: str = "one") -> Manifest:
    """A manifest that names nothing."""
    payload = f'{{"schemaVersion":2,"annotations":{{"text":"{text}"}}}}'.encode()
    return Manifest(Digest.of(payload), OCI_MANIFEST, payload)


class Upstream:
    """A client of an upstream that has ``manifests`` by reference, ``tags``, and sizes of ``blobs``.

    Raises ``error`` instead of responding, if it is set; ``requests`` has every request in order.
    """

    name, read_timeout = NAME, 5.0

    def __init__(self) -> None:
        self.health = Health(NAME, SharedState(None, ""), emit=lambda event: None)
        self.manifests: dict[str, Manifest] = {}
        self.tags: list[str] = []
        self.referrers: list[dict[str, Any]] | None = None
        self.blobs: dict[str, int | None] = {}
        self.sizes: dict[str, int] = {}
        self.content = b""
        self.error: Exception | None = None
        self.supports_head = True
        self.requests: list[tuple[str, str]] = []

    def _begin(self, method: str, subject: str) -> None:
        self.requests.append((method, subject))
        if self.error is not None:
            raise self.error

    async def get_manifest(self, repository: Repository, reference: Reference) -> Manifest:
        self._begin("GET", str(reference))
        return self._find(str(reference))

    async def head_manifest(self, repository: Repository, reference: Reference) -> Any:
        self._begin("HEAD", str(reference))
        if not self.supports_head:
            raise UpstreamNotFound(NAME, "has no HEAD")
        found = self._find(str(reference))
        return SimpleNamespace(digest=found.digest, media_type=found.media_type, size=found.size)

    def _find(self, reference: str) -> Manifest:
        if reference not in self.manifests:
            raise UpstreamNotFound(NAME, f"has no {reference}")
        return self.manifests[reference]

    async def head_blob(self, repository: Repository, digest: Digest) -> int | None:
        self._begin("HEAD", digest)
        if digest not in self.blobs:
            raise UpstreamNotFound(NAME, f"has no {digest}")
        return self.blobs[digest]

    async def blob_size(self, repository: Repository, digest: Digest) -> int | None:
        self._begin("GET", digest)
        return self.sizes.get(digest)

    async def list_tags(self, repository: Repository) -> list[str]:
        self._begin("GET", "list")
        return self.tags

    async def list_referrers(self, repository: Repository, digest: Digest) -> list[dict[str, Any]] | None:
        self._begin("GET", "referrers")
        return self.referrers

    @asynccontextmanager
    async def open_blob(
        self, repository: Repository, digest: Digest, start: int, stop: int | None = None
    ) -> AsyncIterator[Any]:
        self._begin("GET", digest)
        pieces = [self.content[start:stop]]

        async def read() -> bytes:
            return pieces.pop() if pieces else b""

        yield SimpleNamespace(start=start, size=len(self.content), read=read)


class World:
    """A metadata cache, one upstream and the access to it, on a clock that the test moves."""

    def __init__(self, root: Path, **freshness: Any) -> None:
        upgrade(database_path(root))
        self.time = 10_000.0
        self.upstream = Upstream()
        self.store = MetadataStore(database_path(root), self.now)
        self.events: list[Any] = []
        self.cache = MetadataCache(
            self.store, self.events.append, missing_max_age=10, now=self.now, clock=self.now
        )
        self.freshness = Freshness.model_validate(freshness)
        upstreams = cast("Mapping[str, UpstreamClient]", {NAME: self.upstream})
        self.access = UpstreamAccess(
            self.cache, upstreams, offline=self.freshness.offline, stale_deadline=5, cold_deadline=5
        )

    def now(self) -> float:
        return self.time

    async def close(self) -> None:
        await self.cache.close()
        await self.store.close()


class Complete:
    """Completeness that finds the same gap in every image."""

    gap: str | None = None

    async def find_gap(self, repository: Repository, manifest: Manifest) -> str | None:
        return self.gap

    def as_completeness(self) -> Completeness:
        return cast("Completeness", self)
