"""Purge on command: an image, a repository or a digest, and what nothing else references."""

from __future__ import annotations

from regmirror.maintenance.gc import Collector, GcSummary, Report
from regmirror.maintenance.remover import Remover
from regmirror.metadata.catalogue import Catalogue
from regmirror.metadata.gc import GcQueries, Removal
from regmirror.oci.names import Digest, Reference, Repository


class Purger:
    """Purges regardless of grace time, pins and last pulls; what other content references stays."""

    def __init__(
        self, metadata: Catalogue, gc_queries: GcQueries, remover: Remover, collector: Collector
    ) -> None:
        self._metadata, self._gc_queries = metadata, gc_queries
        self._remover, self._collector = remover, collector

    async def purge_image(self, repository: Repository, reference: Reference, report: Report) -> GcSummary:
        """Purge a tag, or a manifest by its digest, from one repository."""
        if isinstance(reference, Digest):
            for removal in await self._gc_queries.purge_manifests(repository, [reference]):
                report(removal)
        else:
            await self._gc_queries.purge_tags(repository, [reference])
        return await self._collector.purge(report)

    async def purge_repository(self, repository: Repository, report: Report) -> GcSummary:
        """Purge every tag, manifest and link of a repository."""
        await self._gc_queries.purge_tags(repository, None)
        for removal in await self._gc_queries.purge_manifests(repository, None):
            report(removal)
        await self._gc_queries.purge_links(repository)
        return await self._collector.purge(report)

    async def purge_digest(self, digest: Digest, report: Report) -> bool:
        """Purge the manifest and the blob of a digest from every repository.

        False if the blob stays because it is being read.
        """
        for repository in await self._metadata.list_repositories_with(digest):
            for removal in await self._gc_queries.purge_manifests(repository, [digest]):
                report(removal)
        removed = await self._remover.remove([digest], "purged")
        for _, size in removed.gone:
            report(Removal(digest, size, "purged"))
        await self._collector.purge(report)
        return not removed.busy
