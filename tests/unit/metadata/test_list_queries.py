"""Lists of what is stored, page by page, and as much as fits into memory."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regmirror.metadata.database import Database
from regmirror.metadata.list_queries import CatalogPage, _last_of
from regmirror.metadata.sqlite import SqliteFile
from regmirror.metadata.store import MetadataStore
from regmirror.metadata.upgrade import database_path, upgrade
from regmirror.oci.manifests import OCI_MANIFEST, Descriptor, Manifest
from regmirror.oci.names import Digest, Repository, Tag

#: Sorted by upstream and name these stand otherwise than as texts.
NAMES = [("a.io", "x"), ("a.io", "x/y"), ("a.io-b", "x"), ("docker.io", "b"), ("docker.io", "z")]
SUBJECT = Digest("sha256:" + "5" * 64)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Any]:
    upgrade(database_path(tmp_path))
    store = MetadataStore(database_path(tmp_path))
    yield store
    await store.close()


@pytest.fixture
async def filled(store: Any) -> Any:
    for number, (upstream, name) in enumerate(NAMES):
        payload = b"%d" % number
        manifest = Manifest(Digest.of(payload), OCI_MANIFEST, payload)
        await store.save_manifest(Repository(upstream, name), manifest, [], Tag("1") if number % 2 else None)
    await store.link(Repository("docker.io", "nothing/held"), SUBJECT)
    return store


@pytest.mark.parametrize("default", ["docker.io", "a.io", "none.io"])
@pytest.mark.parametrize("upstream", [None, "a.io", "docker.io", "none.io"])
async def test_the_pages_of_the_catalog_are_parts_of_the_whole(
    filled: Any, default: str, upstream: str | None
) -> None:
    """B53: sorted as the names are shown, whatever the size of a page."""
    uncancellable = sorted(
        name if upstream or host == default else f"{host}/{name}"
        for host, name in NAMES
        if upstream in (None, host)
    )
    for limit in (1, 2, 3, 10):
        for last in (None, "", "a", "a.io", "a.io-", "a.io/", "a.io/x/", "zz", *uncancellable):
            expected = [name for name in uncancellable if name > (last or "")][:limit]
            page = CatalogPage(limit, default, upstream, last)
            assert await filled.list_catalog(page) == expected, (limit, last)


@given(st.text("a/-.b", max_size=4), st.sampled_from(["", "a/", "a-b/", "b/"]), st.text("ab", min_size=1))
def test_names_go_on_where_the_page_before_ended(last: Any, prefix: Any, name: str) -> None:
    """B53: for each upstream by itself."""
    after = _last_of(last, prefix)
    assert (after is not None and name > after) == (prefix + name > last)


async def test_no_more_tags_are_read_than_a_page_has(store: Any) -> None:
    for name in ("a", "b", "c", "d"):
        await store.save_manifest(Repository("x.io", "y"), Manifest(SUBJECT, "a/b", b""), [], Tag(name))
    assert await store.list_tags(Repository("x.io", "y"), last="a", limit=2) == ["b", "c"]


async def test_referrers_are_read_as_far_as_they_fit_into_memory(store: Any) -> None:
    """B100: each may have 8 MiB, and there may be any number."""
    subject = Descriptor(SUBJECT, 1, OCI_MANIFEST, "subject", fetchable=False)
    manifests = []
    for number in range(5):
        payload = json.dumps({"n": number, "pad": "x" * 1_000}).encode()
        manifests.append(Manifest(Digest.of(payload), OCI_MANIFEST, payload))
        await store.save_manifest(Repository("x.io", "y"), manifests[-1], [subject])
    manifests.sort(key=lambda manifest: manifest.digest)
    size = manifests[0].size
    assert await store.list_referrers(Repository("x.io", "y"), SUBJECT, limit=3 * size) == manifests[:3]
    assert await store.list_referrers(Repository("x.io", "y"), SUBJECT) == manifests


async def test_a_list_that_fails_gives_its_turn_back(tmp_path: Path) -> None:
    """B44: else the lists of this process would be over."""
    upgrade(database_path(tmp_path))
    database = Database(SqliteFile(database_path(tmp_path)).open_engines)

    async def fail(connection: Any) -> None:
        raise ValueError("broken")

    async def read(connection: Any) -> Any:
        return "answer"

    for _ in range(5):
        with pytest.raises(ValueError, match=r"^broken$"):
            await database.read_list(fail)
    assert await database.read_list(read) == "answer"
    await database.close()
