"""Whether an image is complete: what it costs to find out is bounded."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from regmirror.blobs.local import LocalBlobStore
from regmirror.metadata.bounded_access import tracking_reads
from regmirror.metadata.cache import MetadataCache
from regmirror.mirror.completeness import MANIFESTS_MAX, VERDICT_MAX_AGE, Completeness
from regmirror.oci.manifests import OCI_INDEX, OCI_MANIFEST, Manifest, parse_document
from regmirror.oci.names import Digest, Repository
from regmirror.offload import LARGE

APP = Repository("registry.test", "team/app")


class Metadata:
    """A metadata cache with these manifests; ``requested`` has every digest that was looked up."""

    def __init__(self, manifests: Any = ()) -> None:
        self.manifests = {manifest.digest: manifest for manifest in manifests}
        self.requested: list[Digest] = []

    async def find_manifest(self, repository: Any, digest: Any) -> Any:
        self.requested.append(digest)
        return self.manifests.get(digest)

    async def count_unlinked(self, repository: Any, digests: Any) -> Any:
        return 0


def completeness_of(metadata: Metadata, root: Path, clock: Clock | None = None) -> Completeness:
    return Completeness(cast("MetadataCache", metadata), LocalBlobStore(root), clock or Clock())


class Clock:
    now = 100.0

    def __call__(self) -> Any:
        return self.now


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The threads that parsed a document."""
    threads, real = list[threading.Thread](), parse_document

    def parse(payload: Any) -> Any:
        threads.append(threading.current_thread())
        return real(payload)

    monkeypatch.setattr("regmirror.mirror.completeness.parse_document", parse)
    return threads


def manifest(media_type: Any, **fields: Any) -> Any:
    payload = json.dumps({"schemaVersion": 2, "mediaType": media_type, **fields}).encode()
    return Manifest(Digest.of(payload), media_type, payload)


def descriptor(digest: Any) -> Any:
    return {"mediaType": "x/y", "digest": digest, "size": 1}


def image(layers: Any) -> Any:
    return manifest(OCI_MANIFEST, layers=[descriptor(f"sha256:{number:064}") for number in range(layers)])


def index(*children: Any) -> Any:
    return manifest(OCI_INDEX, manifests=[descriptor(child) for child in children])


async def test_a_large_manifest_is_examined_once_a_second_and_in_a_thread(
    tmp_path: Path, parsed: Any
) -> None:
    """B39, B100: while an upstream fails, each request for it would stop all others."""
    clock, large = Clock(), image(500)
    assert large.size > LARGE
    completeness = completeness_of(Metadata(), tmp_path, clock)
    gaps = await asyncio.gather(*(completeness.find_gap(APP, large) for _ in range(10)))
    assert set(gaps) == {"0 of its 500 layers are cached"}
    assert len(parsed) == 1
    assert threading.main_thread() not in parsed
    clock.now += VERDICT_MAX_AGE
    await completeness.find_gap(APP, large)
    assert len(parsed) == 2


async def test_an_ordinary_manifest_is_examined_each_time(tmp_path: Path, parsed: Any) -> None:
    """B39: what has just been stored counts at once."""
    small = image(3)
    completeness = completeness_of(Metadata(), tmp_path)
    for _ in range(2):
        assert await completeness.find_gap(APP, small) == "0 of its 3 layers are cached"
    assert parsed == [threading.main_thread()] * 2


async def test_an_image_that_is_named_often_is_looked_for_once(tmp_path: Path) -> None:
    """B100: indexes of indexes name the same image a million times."""
    lost = Digest("sha256:" + "1" * 64)
    inner = index(*[lost] * 100)
    middle = index(*[inner.digest] * 100)
    outer = index(*[middle.digest] * 100)
    metadata = Metadata([inner, middle])
    completeness = completeness_of(metadata, tmp_path)
    assert await completeness.find_gap(APP, outer) == "none of its 100 platform images is completely cached"
    assert metadata.requested == [middle.digest, inner.digest, lost]


async def test_no_more_manifests_are_looked_for_than_a_verdict_is_worth(tmp_path: Path) -> None:
    """B100: an index may name any number, and each is a read of the database."""
    outer = index(*(f"sha256:{number:064}" for number in range(MANIFESTS_MAX + 10)))
    metadata = Metadata()
    completeness = completeness_of(metadata, tmp_path)
    for _ in range(2):
        await completeness.find_gap(APP, outer)
    assert len(metadata.requested) == MANIFESTS_MAX


async def test_a_verdict_without_the_database_is_not_kept(tmp_path: Path) -> None:
    """B44: a child that could not be read may be stored."""
    outer = index(*(f"sha256:{number:064}" for number in range(500)))
    metadata = Metadata()
    completeness = completeness_of(metadata, tmp_path)
    for _ in range(2):
        with tracking_reads() as doubt:
            doubt.has_failed = True
            await completeness.find_gap(APP, outer)
    assert len(metadata.requested) == 1_000
