"""Stored content opens for bytes alone: never for a status, a redirect or a field of a document."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from regmirror.metadata.upgrade import database_path
from regmirror.telemetry.events import DownloadEnded, VerificationFailed
from tests.fake_registry import (
    INDEX,
    LAYER,
    MANIFEST,
    Corrupt,
    FakeRegistry,
    FakeStorage,
    Html,
    IgnoreRange,
    SetHeaders,
    Status,
    StripHeaders,
    random_bytes,
)
from tests.mirror_fixture import wait_until

SECRET = random_bytes(300_000)
OTHER = "/v2/other.test/any/name"


@pytest.fixture
async def other() -> AsyncIterator[Any]:
    """An upstream of which somebody else decides what it answers."""
    async with FakeRegistry() as registry:
        yield registry


@pytest.fixture
async def private(start_mirror: Any, upstream: Any, other: Any) -> Any:
    """A mirror that holds a private image of ``registry.test``; ``other.test`` has nothing of it."""
    image = upstream.add_image("secret/app", "1", [SECRET])
    other.add_image("any/name", "1", [b"theirs"])
    mirror = await start_mirror({"registry.test": upstream, "other.test": other})
    await mirror.get("/v2/secret/app/manifests/1")
    for digest in image.blob_digests:
        await mirror.get(f"/v2/secret/app/blobs/{digest}")
    await mirror.events.wait_for(DownloadEnded, 2)
    mirror.image, mirror.layer = image, image.layer_digests[0]
    return mirror


def rights(mirror: Any, name: Any = "any/name") -> Any:
    """The digests of the blobs that are open to a repository, as the database has it."""
    query = """SELECT b.digest FROM repository_blobs b JOIN repositories r ON r.id = b.repository_id
        WHERE r.name = ?"""
    with sqlite3.connect(database_path(mirror.root)) as database:
        return [row[0] for row in database.execute(query, (name,))]


async def refused(mirror: Any, method: Any = "GET", digest: Any = None) -> Any:
    """The status of a request that must not be answered with the private layer."""
    got = await mirror.request(method, f"{OTHER}/blobs/{digest or mirror.layer}")
    assert SECRET[:64] not in got.body
    assert "Docker-Content-Digest" not in got.headers
    return got.status


# --- claims ---


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_proves_nothing(private: Any, other: Any, method: Any, status: Any) -> None:
    """B67: registry.k8s.io redirects requests for any digest; the storage has no such object."""
    async with FakeStorage(other) as storage:
        other.blob_location = None
        other.fault(Status(status, {"Location": f"{storage.url}/none"}), kind="blob", times=None)
        assert await refused(private, method) in {404, 502}
        assert await refused(private, method) in {404, 502}
    assert rights(private) == []


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_login_page_proves_nothing(private: Any, other: Any, method: Any) -> None:
    """B10, B67: 200 text/html for whatever is requested."""
    other.fault(Html(), times=None)
    assert await refused(private, method) == 502
    for digest in (private.image.digest, "sha256:" + "0" * 64):
        got = await private.request(method, f"{OTHER}/manifests/{digest}")
        assert got.status == 502
    assert rights(private) == []


@pytest.mark.parametrize("headers", [{}, {"Content-Length": str(len(SECRET))}])
async def test_a_status_proves_nothing(private: Any, other: Any, headers: Any) -> None:
    """B67: a HEAD of 200 with the right length is no proof."""
    other.fault(Status(200, headers), kind="blob", method="HEAD", times=None)
    assert await refused(private) == 404
    assert await refused(private, "HEAD") == 404
    assert rights(private) == []


@pytest.mark.parametrize(
    "document",
    [
        {"layers": ["D"]},
        {"config": "D"},
        {"manifests": ["D"]},
        {"blobs": ["D"]},
        {"fsLayers": ["S"]},
        '{"schemaVersion": 2, "config": {}, "layers": [%s], "Layers": []}',
        '{"schemaVersion": 2, "config": {}, "layers": [], "layers": [%s]}',
    ],
    ids=["layers", "config", "manifests", "blobs", "fsLayers", "key in two cases", "key twice"],
)
@pytest.mark.parametrize("media_type", [MANIFEST, INDEX])
async def test_a_manifest_proves_nothing(private: Any, other: Any, document: Any, media_type: Any) -> None:
    """B67: whoever may push writes what he likes into it, and registries read JSON in several ways."""
    descriptor = {"mediaType": LAYER, "digest": private.layer, "size": len(SECRET)}
    if isinstance(document, str):
        payload = (document % json.dumps(descriptor)).encode()
    else:
        places = {"D": descriptor, "S": {"blobSum": private.layer}}
        fill = {k: [places[v[0]]] if isinstance(v, list) else places[v] for k, v in document.items()}
        payload = json.dumps({"schemaVersion": 2, **fill}).encode()
    other.add_manifest("any/name", payload, media_type, "thief")
    assert (await private.get(f"{OTHER}/manifests/thief")).status == 200
    assert await refused(private) == 404
    assert await refused(private, "HEAD") == 404
    assert rights(private) == []


async def test_a_tag_that_names_a_private_manifest_does_not_bring_it(private: Any, other: Any) -> None:
    """B67: the digest in a HEAD's header is a claim; the bytes have to come from that upstream."""
    claim = {"Docker-Content-Digest": private.image.digest, "Content-Type": MANIFEST, "Content-Length": "300"}
    other.fault(Status(200, claim), kind="manifest", method="HEAD", times=None)
    await private.head(f"{OTHER}/manifests/1")
    got = await private.get(f"{OTHER}/manifests/1")
    assert got.body != private.image.manifest
    got = await private.get(f"{OTHER}/manifests/{private.image.digest}")
    assert got.status == 404


async def test_a_head_that_names_another_digest_is_rejected(private: Any, other: Any) -> None:
    """B3: of the one that was requested the upstream says nothing then."""
    other.fault(SetHeaders({"Docker-Content-Digest": "sha256:" + "1" * 64}), method="HEAD", times=None)
    digest = next(iter(other.repository("any/name").manifests))
    assert (await private.head(f"{OTHER}/manifests/{digest}")).status == 502


async def test_a_head_without_a_digest_is_followed_by_a_get(private: Any, other: Any) -> None:
    """B3: the bytes tell."""
    other.fault(StripHeaders(["Docker-Content-Digest"]), method="HEAD", times=None)
    digest = next(iter(other.repository("any/name").manifests))
    got = await private.head(f"{OTHER}/manifests/{digest}")
    assert (got.status, got.headers["Docker-Content-Digest"]) == (200, digest)
    assert other.count("manifest", "GET") == 1


# --- proofs ---


async def test_the_own_upstream_proves_by_a_part_that_the_mirror_chooses(private: Any, other: Any) -> None:
    """B67: one request of at most 64 KiB, at another place for each blob; later pulls need none."""
    layers = [random_bytes(300_000, seed=seed) for seed in range(1, 5)]
    for data in layers:
        await private.get(f"/v2/other.test/elsewhere/blobs/{other.add_blob('elsewhere', data)}")
    await private.events.wait_for(DownloadEnded, 2 + len(layers))
    other.clear()
    for data in layers:
        digest = other.add_blob("any/name", data)
        for _ in range(2):
            assert (await private.get(f"{OTHER}/blobs/{digest}")).body == data

    parts = [re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers["Range"]) for request in other.find("blob")]
    lengths = [int(part[2]) - int(part[1]) + 1 for part in parts]
    assert {length for length in lengths if not 16 <= length <= 64 * 1024} == set()
    assert [request.sent_bytes for request in other.find("blob")] == lengths
    assert len({part[1] for part in parts}) == len(layers)
    assert len(rights(private)) == len(layers)


async def test_a_head_of_a_stored_blob_is_proven_like_a_get(private: Any, other: Any) -> None:
    """B48, B67: and both are hits then."""
    other.add_blob("any/name", SECRET)
    other.clear()
    got = await private.head(f"{OTHER}/blobs/{private.layer}")
    assert (got.status, got.headers["Content-Length"]) == (200, str(len(SECRET)))
    assert (await private.get(f"{OTHER}/blobs/{private.layer}")).body == SECRET
    assert [request.method for request in other.find("blob")] == ["GET"]


async def test_other_bytes_prove_nothing(private: Any, other: Any) -> None:
    """B67: of the right length, in the right part."""
    wrong = random_bytes(len(SECRET), seed=7)
    digest = other.add_blob("any/name", wrong)
    blobs = other.repository("any/name").blobs
    blobs[private.layer] = blobs[digest]
    assert await refused(private) == 404
    assert rights(private) == []


@pytest.mark.parametrize("size", [1, 100, 10_000])
async def test_a_shorter_blob_proves_nothing(private: Any, other: Any, size: Any) -> None:
    """B67: that its first bytes are right is not enough."""
    digest = other.add_blob("any/name", SECRET[:size])
    blobs = other.repository("any/name").blobs
    blobs[private.layer] = blobs[digest]
    other.fault(IgnoreRange(), kind="blob", times=None)
    assert await refused(private) in {404, 502}
    assert rights(private) == []


async def test_an_upstream_without_ranges_proves_by_what_it_sends(private: Any, other: Any) -> None:
    """B67: the blob is read until the compared part has come."""
    other.add_blob("any/name", SECRET)
    other.fault(IgnoreRange(), kind="blob", times=None)
    assert (await private.get(f"{OTHER}/blobs/{private.layer}")).body == SECRET
    assert rights(private) == [private.layer]


async def test_a_proof_may_come_from_a_storage_host(private: Any, other: Any) -> None:
    """B55, B67: redirects are followed to the bytes."""
    other.add_blob("any/name", SECRET)
    async with FakeStorage(other) as storage:
        assert (await private.get(f"{OTHER}/blobs/{private.layer}")).body == SECRET
        assert storage.count(method="GET") == 1
    assert rights(private) == [private.layer]


async def test_a_small_blob_is_compared_as_a_whole(private: Any, other: Any) -> None:
    """B67: most of a config can be guessed, but not all of it."""
    config = private.image.blob_digests[0]
    wrong = private.image.config[:-3] + b"  }"
    digest = other.add_blob("any/name", wrong)
    blobs = other.repository("any/name").blobs
    blobs[config] = blobs[digest]
    assert await refused(private, digest=config) == 404


async def test_wrong_bytes_leave_no_right_behind(private: Any, upstream: Any, other: Any) -> None:
    """B2, B67: the headers of a response prove nothing either."""
    fresh = random_bytes(200_000, seed=99)
    digest = upstream.add_blob("secret/app", fresh)
    other.add_blob("any/name", fresh)
    other.fault(Corrupt(), kind="blob", times=1)
    with pytest.raises(Exception, match="Response payload is not completed"):
        await private.get(f"{OTHER}/blobs/{digest}")
    await private.events.wait_for(DownloadEnded, 3)
    other.remove_blob("any/name", digest)
    await private.get(f"/v2/secret/app/blobs/{digest}")
    await private.events.wait_for(DownloadEnded, 4)

    assert (await private.get(f"{OTHER}/blobs/{digest}")).status == 404
    assert rights(private) == []


async def test_ten_pulls_share_one_proof(private: Any, other: Any) -> None:
    """B20, B67."""
    other.add_blob("any/name", SECRET)
    other.clear()
    pulls = (private.get(f"{OTHER}/blobs/{private.layer}") for _ in range(10))
    assert {got.body for got in await asyncio.gather(*pulls)} == {SECRET}
    assert other.count("blob") == 1


async def test_other_bytes_that_arrive_for_another_repository_are_no_refusal(
    private: Any, upstream: Any, other: Any
) -> None:
    """B2, B5: whoever lies, the pull through the own upstream gets the right bytes."""
    fresh = random_bytes(400_000, seed=31)
    digest = upstream.add_blob("secret/app", fresh)
    wrong = other.add_blob("any/name", random_bytes(400_000, seed=32))
    blobs = other.repository("any/name").blobs
    blobs[digest] = blobs[wrong]
    pause = other.pause(after=200_000, kind="blob")
    liar = asyncio.create_task(private.get(f"{OTHER}/blobs/{digest}"))
    await pause.wait_for_arrivals()
    pull = asyncio.create_task(private.get(f"/v2/secret/app/blobs/{digest}"))
    await wait_until(lambda: upstream.count("blob", reference=digest) == 1, "a part is compared")
    pause.release()

    assert (await pull).body == fresh
    with pytest.raises(aiohttp.ClientPayloadError):
        await liar
    assert rights(private) == []


async def test_a_proof_against_bytes_that_turn_out_wrong_opens_nothing(
    private: Any, upstream: Any, other: Any
) -> None:
    """B67: two upstreams that send the same wrong bytes prove nothing about the right ones."""
    fresh = random_bytes(400_000, seed=33)
    digest = upstream.add_blob("secret/app", fresh)
    wrong = other.add_blob("any/name", random_bytes(400_000, seed=34))
    for name in ("any/name", "any/accomplice"):
        other.repository(name).blobs[digest] = other.repository("any/name").blobs[wrong]
    pause = other.pause(after=200_000, repository="any/name", kind="blob")
    liar = asyncio.create_task(private.get(f"{OTHER}/blobs/{digest}"))
    await pause.wait_for_arrivals()
    accomplice = asyncio.create_task(private.get(f"/v2/other.test/any/accomplice/blobs/{digest}"))
    await wait_until(lambda: other.count("blob", repository="any/accomplice") == 1, "a part is compared")
    pause.release()
    await asyncio.gather(liar, accomplice, return_exceptions=True)
    assert (await private.get(f"/v2/secret/app/blobs/{digest}")).body == fresh

    got = await private.get(f"/v2/other.test/any/accomplice/blobs/{digest}")

    assert got.body[:64] != fresh[:64]
    assert rights(private, "any/accomplice") == []


async def test_an_image_whose_layers_came_through_another_repository_is_not_served_without_proof(
    private: Any, other: Any
) -> None:
    """B39: while its upstream fails its layers could not be had."""
    copy = other.add_image("any/copy", "1", [SECRET])
    path = "/v2/other.test/any/copy/manifests/1"
    assert (await private.get(path)).body == copy.manifest
    await other.stop()
    private.clock.advance(3600)
    assert (await private.get(path)).status >= 500


async def test_a_proof_of_bytes_that_failed_opens_nothing_that_comes_later(
    private: Any, upstream: Any, other: Any
) -> None:
    """B67: the upstream that sent wrong bytes finishes its proof of them when the right ones are here."""
    fresh = random_bytes(400_000, seed=41)
    digest = upstream.add_blob("secret/app", fresh)
    wrong = other.add_blob("any/name", random_bytes(400_000, seed=42))
    for name in ("any/name", "any/accomplice"):
        other.repository(name).blobs[digest] = other.repository("any/name").blobs[wrong]
    pause = other.pause(after=200_000, repository="any/name", kind="blob")
    hold = other.hold(repository="any/accomplice", kind="blob")
    liar = asyncio.create_task(private.get(f"{OTHER}/blobs/{digest}"))
    await pause.wait_for_arrivals()
    accomplice = asyncio.create_task(private.get(f"/v2/other.test/any/accomplice/blobs/{digest}"))
    await hold.wait_for_arrivals()
    pause.release()
    await asyncio.gather(liar, return_exceptions=True)
    victim = upstream.pause(after=300_000, kind="blob", reference=digest)
    pull = asyncio.create_task(private.get(f"/v2/secret/app/blobs/{digest}"))
    await victim.wait_for_arrivals()
    thief = asyncio.create_task(private.get(f"/v2/other.test/any/accomplice/blobs/{digest}"))
    await asyncio.sleep(0)
    hold.release()
    responses = await asyncio.gather(accomplice, thief, return_exceptions=True)
    victim.release()
    assert (await pull).body == fresh
    responses += await asyncio.gather(
        private.get(f"/v2/other.test/any/accomplice/blobs/{digest}"), return_exceptions=True
    )
    shown = [response.body for response in responses if not isinstance(response, BaseException)]
    assert [body for body in shown if fresh[:64] in body or fresh[-64:] in body] == []
    assert rights(private, "any/accomplice") == []


async def test_a_right_opens_no_bytes_that_another_upstream_sends(
    private: Any, upstream: Any, other: Any
) -> None:
    """B2, B67: a right is about the blob, and what arrives may not be it."""
    private.blob_path(private.layer).unlink()
    wrong = other.add_blob("any/name", random_bytes(len(SECRET), seed=43))
    other.repository("any/name").blobs[private.layer] = other.repository("any/name").blobs[wrong]
    pause = other.pause(after=100_000, kind="blob")
    liar = asyncio.create_task(private.get(f"{OTHER}/blobs/{private.layer}"))
    await pause.wait_for_arrivals()

    assert (await private.get(f"/v2/secret/app/blobs/{private.layer}")).body == SECRET

    pause.release()
    await asyncio.gather(liar, return_exceptions=True)


@pytest.mark.parametrize("sent", [0, 10, 6_000])
async def test_an_upstream_that_stops_holds_up_no_pull_through_another(
    private: Any, upstream: Any, other: Any, sent: Any
) -> None:
    """B35: it is answered by its own upstream, without the bytes that have arrived."""
    fresh = random_bytes(400_000, seed=44)
    digest = upstream.add_blob("secret/app", fresh)
    other.add_blob("any/name", fresh)
    pause = other.pause(after=sent, kind="blob")
    slow = asyncio.create_task(private.get(f"{OTHER}/blobs/{digest}"))
    await pause.wait_for_arrivals()

    assert (await private.get(f"/v2/secret/app/blobs/{digest}")).body == fresh

    pause.release()
    await asyncio.gather(slow, return_exceptions=True)


# --- what one repository says is its own ---


async def test_another_media_type_of_the_same_bytes_stays_where_it_was_said(
    private: Any, upstream: Any, other: Any
) -> None:
    """B1: pushing a popular image's bytes under another type spoils it for nobody else."""
    other.add_manifest("any/name", private.image.manifest, "application/x-spoilt", "spoilt")
    popular = upstream.add_image("popular", "1", [b"popular"])
    other.add_manifest("any/name", popular.manifest, "application/x-spoilt", "first")
    got = await private.get(f"{OTHER}/manifests/first")
    assert got.headers["Content-Type"] == "application/x-spoilt"
    for _ in range(2):
        got = await private.get("/v2/popular/manifests/1")
        assert (got.body, got.headers["Content-Type"]) == (popular.manifest, MANIFEST)
        got = await private.get(f"/v2/popular/manifests/{popular.digest}")
        assert (got.body, got.headers["Content-Type"]) == (popular.manifest, MANIFEST)


async def test_a_size_that_another_repository_claims_counts_nowhere(
    private: Any, start_mirror: Any, upstream: Any, other: Any
) -> None:
    """B6, B48: neither for a HEAD, nor against a file that has lost its row."""
    fresh = random_bytes(100_000, seed=5)
    digest = upstream.add_blob("secret/app", fresh)
    claim = {"mediaType": LAYER, "digest": digest, "size": 7}
    other.add_manifest("any/name", {"schemaVersion": 2, "config": {}, "layers": [claim]}, tag="liar")
    await private.get(f"{OTHER}/manifests/liar")
    async with FakeStorage(upstream):
        got = await private.head(f"/v2/secret/app/blobs/{digest}")
        assert got.headers["Content-Length"] == str(len(fresh))
    assert (await private.get(f"/v2/secret/app/blobs/{digest}")).body == fresh
    await private.events.wait_for(DownloadEnded, 3)
    with sqlite3.connect(database_path(private.root)) as database:
        database.execute("DELETE FROM blobs WHERE digest = ?", (digest,))
    started_later = await start_mirror({"registry.test": upstream, "other.test": other})
    upstream.clear()

    got = await started_later.get(f"/v2/secret/app/blobs/{digest}")

    assert (got.body, got.headers["Cache-Status"]) == (fresh, "regmirror; hit")
    assert upstream.count() == 0
    assert started_later.events.of(VerificationFailed) == []


# --- corruption ---


async def test_a_manifest_whose_stored_bytes_have_changed_is_fetched_again(
    private: Any, start_mirror: Any, upstream: Any, other: Any
) -> None:
    """B99: it is hashed when it enters memory, and never served with a digest that it does not have."""
    digest = private.image.digest
    with sqlite3.connect(database_path(private.root)) as database:
        changed = private.image.manifest.replace(b"schemaVersion", b"schemaversion")
        database.execute("UPDATE manifests SET payload = ? WHERE digest = ?", (changed, digest))
    started_later = await start_mirror({"registry.test": upstream, "other.test": other})
    upstream.clear()

    for _ in range(2):
        got = await started_later.get(f"/v2/secret/app/manifests/{digest}")
        assert (got.status, got.body) == (200, private.image.manifest)

    assert [event.where for event in started_later.events.of(VerificationFailed)] == ["store"]
    assert upstream.count("manifest", "GET") == 1
