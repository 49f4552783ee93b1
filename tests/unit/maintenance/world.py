"""A store with its database, on a clock that the test moves."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from regmirror.config.schema import Config
from regmirror.maintenance.toolkit import open_toolkit
from regmirror.metadata.gc import Removal
from regmirror.metadata.store import MetadataStore
from regmirror.metadata.upgrade import database_path, upgrade
from regmirror.oci.manifests import OCI_MANIFEST, Descriptor, Manifest
from regmirror.oci.names import Digest, Repository, Tag

APP, OTHER = Repository("registry.test", "team/app"), Repository("registry.test", "team/other")
TAG = Tag("1")


class World:
    """Real files, real rows, and every event and removal that was reported."""

    def __init__(self, root: Path) -> None:
        self.root, self.time = root, 100_000.0
        upgrade(database_path(root))
        self.metadata = MetadataStore(database_path(root), self.now)
        self.events: list[Any] = []
        self.removals: list[Removal] = []
        self.toolkit = open_toolkit(root, self.metadata, self.events.append, self.now)
        self.toolkit.store.prepare()
        self.toolkit.staging.prepare()

    def now(self) -> float:
        return self.time

    async def add_blob(self, data: bytes) -> Digest:
        """A stored blob that ``APP`` may serve."""
        digest = Digest.of(data)
        self.toolkit.store.path(digest).write_bytes(data)
        await self.metadata.save_blob(digest, len(data), [APP])
        return digest

    async def add_manifest(
        self, text: str, *layers: Digest, tag: Tag | None = None, repository: Repository = APP
    ) -> Digest:
        """A stored manifest that names ``layers``."""
        payload = text.encode()
        named = [Descriptor(item, 5, "layer", "layer", fetchable=True) for item in layers]
        manifest = Manifest(Digest.of(payload), OCI_MANIFEST, payload)
        await self.metadata.save_manifest(repository, manifest, named, tag)
        return manifest.digest

    def report(self, removal: Removal) -> None:
        self.removals.append(removal)

    def removed(self) -> set[str]:
        """The digests of everything that was reported."""
        return {removal.digest for removal in self.removals}

    async def close(self) -> None:
        await self.metadata.close()


def config(**sections: Any) -> Config:
    return Config.model_validate(sections)


async def flush_nothing() -> None:
    """No pull is in memory."""
    await asyncio.sleep(0)
