"""Catalogue: what the mirror has, on whichever machine: tags, manifests, blobs and links.

A repository sees its own content only: nothing that another one stored is found through it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from regmirror.metadata.list_queries import CatalogPage
from regmirror.metadata.records import TagRecord
from regmirror.oci.manifests import Descriptor, Manifest
from regmirror.oci.names import Digest, Repository, Tag


class Catalogue(Protocol):
    """Tags, manifests and links of the mirror. Errors are SQLAlchemy's."""

    async def ping(self) -> None:
        """Raise sqlalchemy's DatabaseError if the database cannot be read."""

    async def find_tag(self, repository: Repository, tag: Tag) -> TagRecord | None:
        """Return the tag as its upstream last reported it."""

    async def find_manifest(self, repository: Repository, digest: Digest) -> Manifest | None:
        """Return the manifest that the repository's upstream sent; its digest is not verified."""

    async def is_linked(self, repository: Repository, digest: Digest) -> bool:
        """Whether the repository's upstream has sent the blob or proven that it has it."""

    async def find_links(self, repository: Repository, digests: Collection[Digest]) -> set[str]:
        """Return those of ``digests`` that are linked to the repository."""

    async def save_manifest(
        self,
        repository: Repository,
        manifest: Manifest,
        references: Iterable[Descriptor],
        tag: Tag | None = None,
    ) -> None:
        """Store a manifest that the repository's upstream sent; with ``tag``, the tag names it."""

    async def delete_manifest(self, digest: Digest) -> None:
        """Delete a corrupt manifest from every repository."""

    async def save_tag(self, repository: Repository, tag: Tag, record: TagRecord) -> TagRecord:
        """Store the tag as its upstream reports it, and return it with ``previous`` filled in."""

    async def delete_tag(self, repository: Repository, tag: Tag) -> None:
        """Delete a tag that the upstream no longer has; nothing if it is not stored."""

    async def link(self, repository: Repository, digest: Digest) -> None:
        """Record that the repository's upstream has sent the blob or proven that it has it."""

    async def save_blob(self, digest: Digest, size: int, linked_to: Iterable[Repository] = ()) -> None:
        """Record a blob that the mirror has, and link it to these repositories."""

    async def save_pulls(
        self,
        tags: Mapping[tuple[Repository, Tag], float],
        manifests: Mapping[tuple[Repository, Digest], float],
        blobs: Mapping[Digest, float],
    ) -> None:
        """Record times of last pulls (wall-clock seconds); content that is not stored is skipped."""

    async def list_tags(
        self, repository: Repository, *, last: str | None = None, limit: int | None = None
    ) -> list[str]:
        """Return the stored tags in order: at most ``limit`` after ``last``. Raises ListsBusy."""

    async def list_catalog(self, page: CatalogPage) -> list[str]:
        """Return one page of names of repositories that have a manifest or a tag. Raises ListsBusy."""

    async def list_referrers(self, repository: Repository, digest: Digest) -> list[Manifest]:
        """Return the repository's manifests whose ``subject`` is ``digest``, in order of their digests."""

    async def list_repositories(self) -> list[Repository]:
        """Return every repository that has a manifest or a tag, in order."""

    async def list_repositories_with(self, digest: Digest) -> list[Repository]:
        """Return every repository that has this manifest."""
