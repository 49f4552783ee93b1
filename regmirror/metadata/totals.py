"""Totals of stored content: maintained by triggers for blobs and manifests, counted for the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from regmirror.metadata import schema as t
from regmirror.metadata.reachability import REFERENCE_BYTES


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts and bytes of stored content."""

    blobs: int
    blob_bytes: int
    manifests: int
    tags: int
    repositories: int
    manifest_bytes: int = 0

    @classmethod
    def read(cls, row: Any) -> Totals:
        """Return the totals from the row that ``TOTALS`` selects."""
        return cls(*(int(value or 0) for value in row))


def _total(what: str, column: Any) -> Any:
    return sa.select(column).where(t.totals.c.what == what).scalar_subquery()


BLOB_BYTES = _total("blobs", t.totals.c.bytes)
MANIFEST_BYTES = (
    _total("manifests", t.totals.c.bytes) + _total("references", t.totals.c.count) * REFERENCE_BYTES
)
#: Repositories with a tag, a manifest or a link; reconciliation deletes the rows of the others.
NONEMPTY_REPOSITORIES = sa.union(
    sa.select(t.tags.c.repository_id),
    sa.select(t.repository_manifests.c.repository_id),
    sa.select(t.repository_blobs.c.repository_id),
)
#: Counts the rows of tags and repositories; blobs and manifests may be many more and are not counted.
TOTALS = sa.select(
    _total("blobs", t.totals.c.count),
    BLOB_BYTES,
    _total("manifests", t.totals.c.count),
    sa.select(sa.func.count()).select_from(t.tags).scalar_subquery(),
    sa.select(sa.func.count())
    .select_from(t.repositories)
    .where(t.repositories.c.id.in_(NONEMPTY_REPOSITORIES))
    .scalar_subquery(),
    MANIFEST_BYTES,
)
#: Counts nothing, because any client may request ``/metrics`` at any rate.
CONTENT_TOTALS = sa.select(
    _total("blobs", t.totals.c.count), BLOB_BYTES, _total("manifests", t.totals.c.count), MANIFEST_BYTES
)
