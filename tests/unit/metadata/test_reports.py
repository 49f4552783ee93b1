"""Reports: read-only queries over one snapshot, and errors that name the remedy."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from regmirror.metadata.reports import (
    Named,
    StoredImage,
    StoreUnreadable,
    is_newer,
    open_reports,
    read_revision,
)
from regmirror.metadata.store import MetadataStore
from regmirror.metadata.totals import Totals
from regmirror.metadata.upgrade import REVISION, database_path, upgrade
from regmirror.oci.manifests import OCI_INDEX, OCI_MANIFEST, Descriptor, Manifest
from regmirror.oci.names import Digest, Repository, Tag

APP, OTHER = Repository("registry.test", "team/app"), Repository("registry.test", "team/other")
LAYER, TAG = Digest.of(b"layer"), Tag("1")
CHILD = Manifest(Digest.of(b"child"), OCI_MANIFEST, b"child")
INDEX = Manifest(Digest.of(b"index"), OCI_INDEX, b"index")
SINGLE = Manifest(Digest.of(b"single"), OCI_MANIFEST, b"single")


@pytest.fixture
async def storage(tmp_path: Path) -> Path:
    """An index with a tag, its child with a layer, and a manifest without a tag."""
    upgrade(database_path(tmp_path))
    store = MetadataStore(database_path(tmp_path), lambda: 7.0)
    await store.save_manifest(APP, CHILD, [Descriptor(LAYER, 5, "x/y", "layer", fetchable=True)])
    child = Descriptor(CHILD.digest, 5, OCI_MANIFEST, "manifest", fetchable=True)
    await store.save_manifest(APP, INDEX, [child], TAG)
    await store.save_manifest(OTHER, SINGLE, [])
    await store.save_blob(LAYER, 100, [APP])
    await store.close()
    return tmp_path


def change(storage: Path, statement: str) -> None:
    with closing(sqlite3.connect(database_path(storage))) as connection, connection:
        connection.execute(statement)


async def test_images_are_tags_and_manifests_outside_of_an_index(storage: Path) -> None:
    with open_reports(storage) as reports:
        assert reports.list_images() == [
            StoredImage(APP, TAG, INDEX.digest, True, 5 + 5 + 100, 7.0),
            StoredImage(OTHER, None, SINGLE.digest, True, 6, 7.0),
        ]
        assert (reports.totals().blobs, reports.totals().manifests) == (1, 3)
        assert isinstance(reports.totals(), Totals)


async def test_a_reference_is_found_in_its_own_repository(storage: Path) -> None:
    with open_reports(storage) as reports:
        assert reports.find(APP, TAG) == Named(INDEX.digest, 7.0, 7.0, 7.0)
        assert reports.find(APP, CHILD.digest) == Named(CHILD.digest, 7.0)
        assert reports.find(OTHER, TAG) is None
        assert reports.find(OTHER, CHILD.digest) is None
        assert reports.has_repository(APP)
        assert not reports.has_repository(Repository("registry.test", "nope"))
        assert reports.find_manifest(CHILD.digest) == CHILD
        assert reports.find_manifest(LAYER) is None
        assert reports.list_tags_of(INDEX.digest) == [(APP, TAG)]


async def test_shared_content_is_referenced_from_outside(storage: Path) -> None:
    with open_reports(storage) as reports:
        assert reports.find_shared([LAYER], [INDEX.digest]) == {str(LAYER)}
        assert reports.find_shared([LAYER], [INDEX.digest, CHILD.digest]) == set()
        assert reports.find_tagged([INDEX.digest, CHILD.digest]) == {str(INDEX.digest)}


async def test_reports_see_one_snapshot_and_write_nothing(storage: Path) -> None:
    with open_reports(storage) as reports:
        assert reports.totals().blobs == 1
        change(storage, "DELETE FROM blobs")
        assert reports.totals().blobs == 1
    with open_reports(storage) as reports:
        assert reports.totals().blobs == 0


@pytest.mark.parametrize(("place", "missing"), [("absent", "no store"), (".", "no database")])
def test_a_missing_database_is_an_error(tmp_path: Path, place: str, missing: str) -> None:
    with pytest.raises(StoreUnreadable, match=f"there is {missing} at"), open_reports(tmp_path / place):
        pytest.fail("nothing can be opened")
    assert read_revision(tmp_path / place) is None


@pytest.mark.parametrize(
    ("revision", "message"),
    [("0001", "written by an older version; run regmirror serve"), ("9999", "newer version .schema 9999.")],
)
async def test_another_schema_is_an_error(storage: Path, revision: str, message: str) -> None:
    change(storage, f"UPDATE alembic_version SET version_num = '{revision}'")
    with pytest.raises(StoreUnreadable, match=message), open_reports(storage):
        pytest.fail("the schema is not this version's")
    assert read_revision(storage) == revision


def test_a_file_that_is_no_database_is_an_error(tmp_path: Path) -> None:
    database_path(tmp_path).write_bytes(b"no database" * 1_000)
    with pytest.raises(StoreUnreadable, match="cannot be read: file is not a database"):
        read_revision(tmp_path)


@pytest.mark.parametrize(
    ("revision", "expected"), [(REVISION, False), ("0001", False), (None, False), ("9999", True), ("x", True)]
)
def test_a_revision_that_is_not_a_number_is_newer(revision: str | None, expected: bool) -> None:
    assert is_newer(revision) is expected
