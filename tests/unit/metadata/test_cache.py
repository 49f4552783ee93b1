"""Memory in front of the database: what is newest counts, and a failing database costs no pull."""

import asyncio
import json
import threading

from sqlalchemy.exc import OperationalError

from regmirror.errors import BlobUnknown, ManifestUnknown
from regmirror.metadata import cache as knowledge_module
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
    """A database that answers when it is told to, with what it knew when it was asked."""

    def __init__(self):
        self.asked, self.answer = asyncio.Event(), asyncio.Event()

    async def find_tag(self, repository, tag):
        self.asked.set()
        await self.answer.wait()
        return OLD

    async def save_tag(self, repository, tag, record):
        pass

    async def ping(self):
        pass


class BrokenStore:
    """A database that fails whatever it is asked."""

    def __getattr__(self, name):
        async def fail(*_):
            raise OperationalError("SELECT", {}, Exception("disk I/O error"))

        return fail


async def test_what_was_learnt_while_the_database_was_read_is_kept():
    """B25: else the upstream would be asked again by everybody who had looked a moment before."""
    store = SlowStore()
    metadata_cache = MetadataCache(store, emit=lambda event: None, missing_max_age=10)
    finding = asyncio.create_task(metadata_cache.find_tag(APP, LATEST))
    await store.asked.wait()
    await metadata_cache.save_tag(APP, LATEST, NEW)
    store.answer.set()

    assert await finding == NEW
    assert metadata_cache.get_cached_tag(APP, LATEST) == NEW


async def test_a_database_that_fails_costs_no_pull():
    """B44: what cannot be read is not known, what cannot be written is counted; memory goes on."""
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


def test_what_is_missing_is_missing_as_what_it_was_asked_for():
    """B28: a digest that is no manifest may be a blob."""
    metadata_cache = MetadataCache(BrokenStore(), emit=lambda event: None, missing_max_age=10)
    error = ManifestUnknown("none")
    metadata_cache.cache_missing(APP, DIGEST, error, denied=False)
    refused = None
    try:
        metadata_cache.check_negative_cache(APP, DIGEST, BlobUnknown)
        metadata_cache.check_negative_cache(APP, DIGEST, ManifestUnknown)
    except ManifestUnknown as caught:
        refused = caught
    assert (type(refused), refused.message) == (ManifestUnknown, error.message)


def manifest_of(layers):
    items = [{"digest": f"sha256:{number:064}", "size": 1} for number in range(layers)]
    payload = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": items}).encode()
    return Manifest(Digest.of(payload), OCI_MANIFEST, payload)


async def test_a_large_manifest_is_parsed_in_a_thread(monkeypatch):
    """B100: the loop of everybody else goes on meanwhile."""
    threads, real = [], knowledge_module.parse_document

    def parse(payload):
        threads.append(threading.current_thread())
        return real(payload)

    monkeypatch.setattr(knowledge_module, "parse_document", parse)
    metadata_cache = MetadataCache(BrokenStore(), emit=lambda event: None, missing_max_age=10)
    await metadata_cache.save_manifest(APP, manifest_of(500))
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


async def test_one_manifest_does_not_push_all_rights_out_of_memory():
    """B67, B100: it brings none."""
    metadata_cache = MetadataCache(BrokenStore(), emit=lambda event: None, missing_max_age=10)
    await metadata_cache.save_manifest(APP, manifest_of(500))
    assert len(metadata_cache._links) == 0


async def test_times_of_last_pull_are_gathered_in_a_bounded_number(monkeypatch):
    """B100: between two flushes anything may be pulled."""
    monkeypatch.setattr(knowledge_module, "PULLS_MAX", 2)
    metadata_cache = MetadataCache(BrokenStore(), emit=lambda event: None, missing_max_age=10)
    for number in range(5):
        metadata_cache.note_tag_pull(APP, Tag(f"t{number}"))
        metadata_cache.note_manifest_pull(APP, Digest(f"sha256:{number:064}"))
        metadata_cache.note_blob_pull(Digest(f"sha256:{number:064}"))
    assert len(metadata_cache._pulled_tags) == len(metadata_cache._pulled_manifests) == 2
    assert len(metadata_cache._pulled_blobs) == 2
