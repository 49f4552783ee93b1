"""Reports for commands, from a database that a server may be using at the same time.

The connection is read-only and sees one snapshot. In WAL mode it neither waits for writers nor
delays them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from regmirror.errors import RegmirrorError
from regmirror.metadata import schema as t
from regmirror.metadata.repositories import is_repository
from regmirror.metadata.sqlite import connect_read_only
from regmirror.metadata.totals import TOTALS, Totals
from regmirror.metadata.upgrade import REVISION, database_path
from regmirror.oci.manifests import Manifest
from regmirror.oci.names import Digest, Reference, Repository, Tag


class StoreUnreadable(RegmirrorError):
    """There is no store at the path, or its database cannot be read."""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A tag or, if ``tag`` is None, a manifest that was pulled by digest and is in no index.

    ``stored_bytes`` counts every stored blob and manifest that it references once. ``is_stored`` is
    False for a tag whose manifest was never fetched. Times are wall-clock seconds.
    """

    repository: Repository
    tag: Tag | None
    digest: Digest
    is_stored: bool
    stored_bytes: int
    pulled_at: float


@dataclass(frozen=True, slots=True)
class Named:
    """The manifest that a reference names; the times of checks are None if the reference is a digest."""

    digest: Digest
    pulled_at: float
    checked_at: float | None = None
    changed_at: float | None = None


@contextmanager
def open_reports(storage: Path) -> Iterator[Reports]:
    """Open the database below ``storage``. Database errors inside the block raise StoreUnreadable too."""
    path = database_path(storage)
    engine = sa.create_engine("sqlite://", creator=lambda: connect_read_only(path), poolclass=sa.NullPool)
    try:
        _require_file(path)
        with engine.connect() as connection:
            _require_schema(path, _revision(connection))
            connection.exec_driver_sql("BEGIN")
            yield Reports(connection)
    except sa.exc.DBAPIError as error:
        raise StoreUnreadable(f"{path} cannot be read: {error.orig}") from None
    finally:
        engine.dispose()


def read_revision(storage: Path) -> str | None:
    """Return the schema of the database below ``storage``, or None. Raises StoreUnreadable."""
    path = database_path(storage)
    engine = sa.create_engine("sqlite://", creator=lambda: connect_read_only(path), poolclass=sa.NullPool)
    try:
        if not path.exists():
            return None
        with engine.connect() as connection:
            return _revision(connection)
    except (OSError, sa.exc.DBAPIError) as error:
        raise StoreUnreadable(f"{path} cannot be read: {getattr(error, 'orig', error)}") from None
    finally:
        engine.dispose()


class Reports:
    """Queries over one snapshot of the database."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def totals(self) -> Totals:
        """Return counts and bytes of everything stored."""
        return Totals.read(self._connection.execute(TOTALS).one())

    def list_images(self) -> list[StoredImage]:
        """Return every tag and every manifest pulled by digest, in order of repository and name."""
        sizes = self._stored_bytes()
        found = [
            StoredImage(
                Repository(row.upstream, row.name),
                None if row.tag is None else Tag(row.tag),
                Digest(row.digest),
                row.stored is not None,
                sizes.get(row.digest, 0),
                row.pulled_at,
            )
            for row in self._connection.execute(sa.union_all(_tagged(), _untagged()))
        ]
        return sorted(found, key=lambda item: (str(item.repository), item.tag or "~", item.digest))

    def find(self, repository: Repository, reference: Reference) -> Named | None:
        """Return the manifest that ``reference`` names in the repository, or None."""
        if isinstance(reference, Digest):
            entries = t.repository_manifests
            query = sa.select(entries.c.pulled_at).join(t.repositories)
            row = self._connection.execute(
                query.where(is_repository(repository), entries.c.digest == str(reference))
            ).first()
            return None if row is None else Named(reference, row[0])
        tags = t.tags.c
        query = sa.select(tags.digest, tags.pulled_at, tags.checked_at, tags.changed_at).join(t.repositories)
        row = self._connection.execute(
            query.where(is_repository(repository), tags.name == str(reference))
        ).first()
        return None if row is None else Named(Digest(row[0]), row[1], row[2], row[3])

    def has_repository(self, repository: Repository) -> bool:
        """Whether the repository has a row."""
        query = sa.select(t.repositories.c.id).where(is_repository(repository))
        return self._connection.execute(query).first() is not None

    def find_manifest(self, digest: Digest) -> Manifest | None:
        """Return the stored manifest, byte for byte, or None."""
        query = sa.select(t.manifests.c.media_type, t.manifests.c.payload)
        row = self._connection.execute(query.where(t.manifests.c.digest == str(digest))).first()
        return None if row is None else Manifest(digest, row[0], row[1])

    def list_tags_of(self, digest: Digest) -> list[tuple[Repository, Tag]]:
        """Return every tag that names this manifest directly."""
        query = sa.select(t.repositories.c.upstream, t.repositories.c.name, t.tags.c.name.label("tag"))
        rows = self._connection.execute(
            query.join(t.tags).where(t.tags.c.digest == str(digest)).order_by(*query.selected_columns)
        )
        return [(Repository(row[0], row[1]), Tag(row[2])) for row in rows]

    def find_shared(self, digests: Collection[Digest], own: Collection[Digest]) -> set[str]:
        """Return those of ``digests`` that a stored manifest outside of ``own`` references."""
        refs = t.manifest_references.c
        query = sa.select(refs.digest).distinct()
        query = query.where(refs.digest.in_([*map(str, digests)]), refs.role != "subject")
        rows = self._connection.execute(query.where(refs.manifest.not_in([*map(str, own)])))
        return {str(row[0]) for row in rows}

    def find_tagged(self, digests: Collection[Digest]) -> set[str]:
        """Return those of ``digests`` that a tag names directly."""
        query = sa.select(t.tags.c.digest).distinct()
        rows = self._connection.execute(query.where(t.tags.c.digest.in_([*map(str, digests)])))
        return {str(row[0]) for row in rows}

    def _stored_bytes(self) -> dict[str, int]:
        """Return for every manifest the stored bytes that it references; shared content counts once."""
        refs = t.manifest_references.c
        roots = sa.union(sa.select(t.tags.c.digest), sa.select(t.repository_manifests.c.digest)).subquery()
        start = sa.select(roots.c.digest.label("root"), roots.c.digest.label("digest"))
        reach = start.cte("reach", recursive=True)
        step = sa.select(reach.c.root, refs.digest).join(
            t.manifest_references, refs.manifest == reach.c.digest
        )
        reach = reach.union(step.where(refs.role != "subject"))
        size = sa.func.coalesce(t.blobs.c.size, sa.func.length(t.manifests.c.payload), 0)
        query = (
            sa.select(reach.c.root, sa.func.sum(size))
            .outerjoin(t.blobs, t.blobs.c.digest == reach.c.digest)
            .outerjoin(t.manifests, t.manifests.c.digest == reach.c.digest)
            .group_by(reach.c.root)
        )
        return {row[0]: int(row[1]) for row in self._connection.execute(query)}


def _tagged() -> sa.Select[Any]:
    return (
        sa.select(
            t.repositories.c.upstream,
            t.repositories.c.name,
            t.tags.c.name.label("tag"),
            t.tags.c.digest,
            t.manifests.c.digest.label("stored"),
            t.tags.c.pulled_at,
        )
        .join(t.tags, t.tags.c.repository_id == t.repositories.c.id)
        .outerjoin(t.manifests, t.manifests.c.digest == t.tags.c.digest)
    )


def _untagged() -> sa.Select[Any]:
    """Select manifests that a repository has without a tag and outside of an index."""
    entries, parent, refs = t.repository_manifests, t.repository_manifests.alias(), t.manifest_references
    is_tagged = sa.exists().where(
        t.tags.c.repository_id == entries.c.repository_id, t.tags.c.digest == entries.c.digest
    )
    is_child = sa.exists(
        sa.select(refs.c.manifest)
        .join(parent, parent.c.digest == refs.c.manifest)
        .where(
            parent.c.repository_id == entries.c.repository_id,
            refs.c.digest == entries.c.digest,
            refs.c.role == "manifest",
        )
    )
    return (
        sa.select(
            t.repositories.c.upstream,
            t.repositories.c.name,
            sa.null().label("tag"),
            entries.c.digest,
            entries.c.digest.label("stored"),
            entries.c.pulled_at,
        )
        .join(entries, entries.c.repository_id == t.repositories.c.id)
        .where(~is_tagged, ~is_child)
    )


def _require_file(path: Path) -> None:
    try:
        if path.is_file():
            return
    except OSError as error:
        raise StoreUnreadable(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from None
    missing = "no database" if path.parent.is_dir() else "no store"
    remedy = "regmirror serve makes one; see storage.path in the configuration"
    raise StoreUnreadable(f"there is {missing} at {path.parent.absolute()}; {remedy}")


def _require_schema(path: Path, found: str | None) -> None:
    if found == REVISION:
        return
    if is_newer(found):
        raise StoreUnreadable(f"{path} was written by a newer version (schema {found}); use that version")
    raise StoreUnreadable(f"{path} was written by an older version; run regmirror serve to upgrade it")


def is_newer(revision: str | None) -> bool:
    """Whether a database of this schema was written by a newer version than this one."""
    with suppress(ValueError):
        return int(revision or "0") > int(REVISION)
    return True


def _revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return None if found is None else str(found)
