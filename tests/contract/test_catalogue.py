"""Catalogue: what every implementation promises."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from regmirror.metadata.catalogue import Catalogue
from regmirror.metadata.list_queries import CatalogPage
from regmirror.metadata.records import TagRecord
from regmirror.metadata.store import MetadataStore
from regmirror.metadata.upgrade import database_path, upgrade
from regmirror.oci.manifests import OCI_MANIFEST, Descriptor, Manifest
from regmirror.oci.names import Digest, Repository, Tag

APP, OTHER = Repository("registry.test", "team/app"), Repository("registry.test", "team/other")
TAG, LAYER = Tag("1"), Digest.of(b"layer")
MANIFEST = Manifest(Digest.of(b"{}"), OCI_MANIFEST, b"{}")
NEWER = Manifest(Digest.of(b"{ }"), OCI_MANIFEST, b"{ }")
REFERENCES = [Descriptor(LAYER, 5, "application/octet-stream", "layer", fetchable=True)]
PAGE = CatalogPage(limit=10, default="registry.test")


@pytest.fixture
async def catalogue(tmp_path: Path) -> AsyncIterator[Catalogue]:
    upgrade(database_path(tmp_path))
    store = MetadataStore(database_path(tmp_path))
    yield store
    await store.close()


async def test_an_empty_catalogue_finds_nothing(catalogue: Catalogue) -> None:
    await catalogue.ping()
    assert await catalogue.find_tag(APP, TAG) is None
    assert await catalogue.find_manifest(APP, MANIFEST.digest) is None
    assert not await catalogue.is_linked(APP, LAYER)
    assert await catalogue.find_links(APP, [LAYER]) == set()
    assert await catalogue.list_tags(APP) == []
    assert await catalogue.list_catalog(PAGE) == []
    assert await catalogue.list_repositories() == []


async def test_a_manifest_is_found_in_its_own_repository_only(catalogue: Catalogue) -> None:
    """Another repository's upstream may not have it."""
    await catalogue.save_manifest(APP, MANIFEST, REFERENCES, TAG)
    assert await catalogue.find_manifest(APP, MANIFEST.digest) == MANIFEST
    assert await catalogue.find_manifest(OTHER, MANIFEST.digest) is None
    assert await catalogue.list_repositories_with(MANIFEST.digest) == [APP]
    record = await catalogue.find_tag(APP, TAG)
    assert record is not None
    assert record.digest == MANIFEST.digest
    assert await catalogue.find_tag(OTHER, TAG) is None


async def test_a_reference_is_no_link(catalogue: Catalogue) -> None:
    """An upstream may send a manifest of blobs that it does not have."""
    await catalogue.save_manifest(APP, MANIFEST, REFERENCES)
    await catalogue.save_blob(LAYER, 5, [OTHER])
    assert not await catalogue.is_linked(APP, LAYER)
    assert await catalogue.is_linked(OTHER, LAYER)
    await catalogue.link(APP, LAYER)
    await catalogue.link(APP, LAYER)
    assert await catalogue.is_linked(APP, LAYER)
    assert await catalogue.find_links(APP, [LAYER, MANIFEST.digest]) == {str(LAYER)}


async def test_a_moved_tag_keeps_its_previous_manifest_until_the_new_one_is_stored(
    catalogue: Catalogue,
) -> None:
    await catalogue.save_manifest(APP, MANIFEST, [], TAG)
    moved = TagRecord(NEWER.digest, OCI_MANIFEST, NEWER.size, 2_000.0)
    expected = replace(moved, previous=MANIFEST.digest)
    assert await catalogue.save_tag(APP, TAG, moved) == expected
    assert await catalogue.find_tag(APP, TAG) == expected
    await catalogue.save_manifest(APP, NEWER, [])
    assert await catalogue.find_tag(APP, TAG) == moved


async def test_a_deleted_tag_is_gone_and_its_manifest_stays(catalogue: Catalogue) -> None:
    await catalogue.save_manifest(APP, MANIFEST, [], TAG)
    await catalogue.delete_tag(APP, TAG)
    await catalogue.delete_tag(OTHER, TAG)
    assert await catalogue.find_tag(APP, TAG) is None
    assert await catalogue.find_manifest(APP, MANIFEST.digest) == MANIFEST
    assert await catalogue.list_repositories() == [APP]


async def test_a_corrupt_manifest_is_deleted_from_every_repository(catalogue: Catalogue) -> None:
    for repository in (APP, OTHER):
        await catalogue.save_manifest(repository, MANIFEST, REFERENCES)
    await catalogue.delete_manifest(MANIFEST.digest)
    assert await catalogue.list_repositories_with(MANIFEST.digest) == []
    assert await catalogue.find_manifest(APP, MANIFEST.digest) is None


async def test_lists_are_in_order_and_come_in_pages(catalogue: Catalogue) -> None:
    for repository in (OTHER, APP):
        for tag in ("2", "1", "3"):
            await catalogue.save_manifest(repository, MANIFEST, [], Tag(tag))
    assert await catalogue.list_tags(APP) == ["1", "2", "3"]
    assert await catalogue.list_tags(APP, last="1", limit=1) == ["2"]
    assert await catalogue.list_catalog(PAGE) == [APP.name, OTHER.name]
    assert await catalogue.list_catalog(replace(PAGE, last=APP.name)) == [OTHER.name]
    assert await catalogue.list_repositories() == [APP, OTHER]


async def test_referrers_are_listed_for_their_own_repository(catalogue: Catalogue) -> None:
    subject = Descriptor(MANIFEST.digest, -1, OCI_MANIFEST, "subject", fetchable=False)
    await catalogue.save_manifest(APP, NEWER, [subject])
    assert await catalogue.list_referrers(APP, MANIFEST.digest) == [NEWER]
    assert await catalogue.list_referrers(OTHER, MANIFEST.digest) == []


async def test_pulls_of_content_that_is_not_stored_are_skipped(catalogue: Catalogue) -> None:
    await catalogue.save_pulls({(APP, TAG): 1.0}, {(APP, MANIFEST.digest): 1.0}, {LAYER: 1.0})
    assert await catalogue.list_repositories() == []
