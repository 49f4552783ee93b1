"""The newest record counts, and a failing database fails no pull."""

import asyncio
import json
import threading
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from regmirror.errors import BlobUnknown, ManifestUnknown
from regmirror.metadata import cache as cache_module
from regmirror.metadata.cache import MetadataCache
from regmirror.metadata.records import TagRecord
from regmirror.oci.manifests import OCI_MANIFEST, Manifest
from regmirror.oci.names import Digest, Repository, Tag
from regmirror.telemetry.events import NotStored

APP, LATEST = Repository("docker.io", "team/app"), Tag("latest")
DIGEST = Digest("sha256:" + "0" * 64)
OLD = TagRecord(DIGEST, "x/y", 1, 100.0)
NEW = TagRecord(DIGEST, "x/y", 1, 200.0)


class SlowStore:
    """A database whose reads return when ``returning`` is set, with the record of before."""

    def __init__(self) -> None:
        self.reading, self.returning = asyncio.Event(), asyncio.Event()

    async def find_tag(self, repository: str, tag: str) -> Any:
        self.reading.set()
        await self.returning.wait()
        return OLD

    async def save_tag(self, repository: str, tag: str, record: Any) -> None:
        pass

    async def ping(self) -> None:
        pass


class BrokenStore:
    """A database whose every query fails."""

    def __getattr__(self, name: str) -> Any:
        async def fail(*_: Any) -> None:
            raise OperationalError("SELECT", {}, Exception("disk I/O error"))

        return fail


async def test_a_tag_saved_during_a_read_is_kept() -> None:
    """B25: otherwise requests that read the older record would check the upstream again."""
    store = SlowStore()
    metadata_cache = MetadataCache(store, emit=lambda event: None, missing_max_age=10)
    finding = asyncio.create_task(metadata_cache.find_tag(APP, LATEST))
    await store.reading.wait()
    await metadata_cache.save_tag(APP, LATEST, NEW)
    store.returning.set()

    assert await finding == NEW
    assert metadata_cache.get_cached_tag(APP, LATEST) == NEW


async def test_a_failing_database_fails_no_pull() -> None:
    """B44: a failed read is a miss, a failed write is reported, and the cache still works."""
    events = []
    metadata_cache = MetadataCache(BrokenStore(), emit=events.append, missing_max_age=10)

    assert await metadata_cache.find_tag(APP, LATEST) is None
    assert await metadata_cache.find_manifest(APP, DIGEST) is None
    assert await metadata_cache.find_size(DIGEST) is None
    assert not await metadata_cache.is_linked(APP, DIGEST)
    await metadata_cache.save_tag(APP, LATEST, NEW)
    await metadata_cache.link(APP, DIGEST)

    assert await metadata_cache.find_tag(APP, LATEST) == NEW
    assert await metadata_cache.is_linked(APP, DIGEST)
    assert {type(event) for event in events} == {NotStored}
    assert {event.detail for event in events} == {"disk I/O error"}


def test_a_missing_manifest_may_be_a_blob() -> None:
    """B28: the negative cache tells them apart."""
    metadata_cache = MetadataCache(BrokenStore(), emit=lambda event: None, missing_max_age=10)
    error = ManifestUnknown("none")
    metadata_cache.negative_cache.put(APP, DIGEST, error, denied=False)
    refused = None
    try:
        metadata_cache.negative_cache.check(APP, DIGEST, BlobUnknown)
        metadata_cache.negative_cache.check(APP, DIGEST, ManifestUnknown)
    except ManifestUnknown as caught:
        refused = caught
    assert (type(refused), refused.message) == (ManifestUnknown, error.message)


def manifest_of(layers: Any) -> Any:
    items = [{"digest": f"sha256:{number:064}", "size": 1} for number in range(layers)]
    payload = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": items}).encode()
    return Manifest(Digest.of(payload), OCI_MANIFEST, payload)


async def test_a_large_manifest_is_parsed_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """B100: the event loop serves other requests meanwhile."""
    threads, real = [], cache_module.parse_document

    def parse(payload: Any) -> Any:
        threads.append(threading.current_thread())
        return real(payload)

    monkeypatch.setattr(cache_module, "parse_document", parse)
    metadata_cache = MetadataCache(BrokenStore(), emit=lambda event: None, missing_max_age=10)
    await metadata_cache.save_manifest(APP, manifest_of(500))
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


async def test_a_large_manifest_evicts_no_cached_links() -> None:
    """B67, B100: its references are no links."""
    metadata_cache = MetadataCache(BrokenStore(), emit=lambda event: None, missing_max_age=10)
    await metadata_cache.save_manifest(APP, manifest_of(500))
    assert len(metadata_cache._links) == 0


async def test_the_number_of_collected_pull_times_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """B100: any number of names may be pulled between two flushes."""
    monkeypatch.setattr(cache_module, "PULLS_MAX", 2)
    metadata_cache = MetadataCache(BrokenStore(), emit=lambda event: None, missing_max_age=10)
    for number in range(5):
        metadata_cache.note_tag_pull(APP, Tag(f"t{number}"))
        metadata_cache.note_manifest_pull(APP, Digest(f"sha256:{number:064}"))
        metadata_cache.note_blob_pull(Digest(f"sha256:{number:064}"))
    assert len(metadata_cache._pulled_tags) == len(metadata_cache._pulled_manifests) == 2
    assert len(metadata_cache._pulled_blobs) == 2
