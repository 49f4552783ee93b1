"""Forgetting on command: an image, a repository or a digest, with all that only it needed."""

from __future__ import annotations

from regmirror.maintenance.gc import Collector, GcSummary, Report
from regmirror.maintenance.remover import Remover
from regmirror.metadata.gc import GcQueries, Removal
from regmirror.metadata.store import MetadataStore
from regmirror.oci.names import Digest, Reference, Repository


class Purger:
    """Forgets now: neither grace time nor pins nor last pulls count, only what others need."""

    def __init__(
        self, metadata: MetadataStore, curation: GcQueries, remover: Remover, collector: Collector
    ) -> None:
        self._metadata, self._curation = metadata, curation
        self._remover, self._collector = remover, collector

    async def purge_image(self, repository: Repository, reference: Reference, tell: Report) -> GcSummary:
        """Forget a tag, or a manifest by its digest, in one repository."""
        if isinstance(reference, Digest):
            for removal in await self._curation.purge_manifests(repository, [reference]):
                tell(removal)
        else:
            await self._curation.purge_tags(repository, [reference])
        return await self._collector.purge(tell)

    async def purge_repository(self, repository: Repository, tell: Report) -> GcSummary:
        """Forget everything of a repository."""
        await self._curation.purge_tags(repository, None)
        for removal in await self._curation.purge_manifests(repository, None):
            tell(removal)
        await self._curation.purge_rights(repository)
        return await self._collector.purge(tell)

    async def purge_digest(self, digest: Digest, tell: Report) -> bool:
        """Forget content by its digest in every repository: a manifest, a blob, or both.

        False if a blob stays because it is being read.
        """
        for repository in await self._metadata.find_holders(digest):
            for removal in await self._curation.purge_manifests(repository, [digest]):
                tell(removal)
        removed = await self._remover.remove([digest], "purged")
        for _, size in removed.gone:
            tell(Removal(digest, size, "purged"))
        await self._collector.purge(tell)
        return not removed.busy
