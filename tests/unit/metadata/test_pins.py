"""Pins: what a pattern protects, directly and through references."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from regmirror.metadata.pins import Pin, Pinned, Pins
from regmirror.metadata.store import MetadataStore
from regmirror.metadata.upgrade import database_path, upgrade
from regmirror.oci.manifests import OCI_INDEX, OCI_MANIFEST, Descriptor, Manifest
from regmirror.oci.names import Digest, Repository, Tag

APP, OTHER = Repository("registry.test", "team/app"), Repository("registry.test", "team/other")
LAYER, SUBJECT = Digest.of(b"layer"), Digest.of(b"subject")
CHILD = Manifest(Digest.of(b"child"), OCI_MANIFEST, b"child")
INDEX = Manifest(Digest.of(b"index"), OCI_INDEX, b"index")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[MetadataStore]:
    """An index with tag 1 in one repository, and its child with tag 2 in another."""
    upgrade(database_path(tmp_path))
    opened = MetadataStore(database_path(tmp_path))
    layer = Descriptor(LAYER, 5, "x/y", "layer", fetchable=True)
    subject = Descriptor(SUBJECT, -1, OCI_MANIFEST, "subject", fetchable=False)
    child = Descriptor(CHILD.digest, 5, OCI_MANIFEST, "manifest", fetchable=True)
    await opened.save_manifest(APP, INDEX, [child], Tag("1"))
    await opened.save_manifest(OTHER, CHILD, [layer, subject], Tag("2"))
    yield opened
    await opened.close()


@pytest.fixture
def pins(store: MetadataStore) -> Pins:
    return Pins(store.database, lambda: 7.0)


async def test_a_pin_is_added_and_removed_once(pins: Pins) -> None:
    assert await pins.find_pinned() == Pinned()
    assert await pins.add("registry.test/*")
    assert not await pins.add("registry.test/*")
    assert await pins.add("a.test/b")
    assert await pins.list() == [Pin("a.test/b", 7.0), Pin("registry.test/*", 7.0)]
    assert await pins.remove("a.test/b")
    assert not await pins.remove("a.test/b")
    assert await pins.list() == [Pin("registry.test/*", 7.0)]


async def test_a_pinned_tag_protects_everything_below_its_index(pins: Pins) -> None:
    await pins.add("registry.test/team/app:1")
    pinned = await pins.find_pinned()
    assert {tag for _, tag in pinned.tags} == {"1"}
    assert {digest for _, digest in pinned.manifests} == {str(INDEX.digest)}
    assert pinned.blobs == {CHILD.digest, LAYER}


async def test_a_pinned_digest_protects_its_manifest_and_no_subject(pins: Pins) -> None:
    await pins.add(f"registry.test/team/other@{CHILD.digest}")
    pinned = await pins.find_pinned()
    assert {digest for _, digest in pinned.manifests} == {str(CHILD.digest)}
    assert pinned.blobs == {LAYER}


async def test_a_pattern_without_a_match_protects_nothing(pins: Pins) -> None:
    await pins.add("registry.test/team/app:2")
    assert await pins.find_pinned() == Pinned()
