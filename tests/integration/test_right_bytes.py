"""Clients get the bytes of the digest, or a response that is visibly incomplete or an error."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
from typing import Any

import aiohttp
import pytest
import trustme

from regmirror.telemetry.events import BlobRemoved, DownloadEnded, RequestServed, VerificationFailed
from tests.conftest import StartMirror
from tests.fake_registry import (
    DOCKER_INDEX,
    INDEX,
    LAYER,
    Action,
    Chunked,
    Corrupt,
    FakeRegistry,
    Fault,
    GzipEncoded,
    Html,
    Kind,
    Pause,
    Reset,
    SetHeaders,
    Status,
    StripHeaders,
    Truncate,
    WrongLength,
    random_bytes,
)
from tests.mirror_fixture import InProcessMirror, wait_until

BLOB = random_bytes(1_000_000)
APP = "/v2/team/app"


@pytest.fixture
def digest(upstream: FakeRegistry) -> str:
    """A layer of the upstream's repository ``team/app``, requested as ``APP/blobs/<digest>``."""
    return upstream.add_blob("team/app", BLOB)


def raw_get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: mirror\r\nConnection: close\r\n\r\n".encode()


def announced_length(response: bytes) -> tuple[int, bytes]:
    """The Content-Length of a response as it came from a socket, and its body."""
    head, _, body = response.partition(b"\r\n\r\n")
    lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    return int(lines[b"content-length"]), body


# --- every part of an image ---


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("docker", [False, True], ids=["oci", "docker"])
async def test_every_part_of_an_image_is_as_upstream_has_it(
    mirror: InProcessMirror, upstream: FakeRegistry, docker: bool, algorithm: str
) -> None:
    """B1: bytes and media types, the first time and from the store."""
    layers = [BLOB, b"", b"small"]
    image = upstream.add_image(
        "team/app", "amd64", layers, docker=docker, algorithm=algorithm, annotations={"name": "ä"}
    )
    index = upstream.add_index("team/app", "1.0", [image], docker=docker, algorithm=algorithm)
    for cache in ("fwd=miss", "hit"):
        got = await mirror.get(f"{APP}/manifests/1.0")
        assert got.body == index.manifest
        assert got.headers["Content-Type"] == (DOCKER_INDEX if docker else INDEX)
        assert got.headers["Docker-Content-Digest"] == index.digest
        got = await mirror.get(f"{APP}/manifests/{image.digest}")
        assert got.body == image.manifest
        assert got.headers["Content-Type"] == image.media_type
        for name, data in zip(image.blob_digests, [image.config, *layers], strict=True):
            got = await mirror.get(f"{APP}/blobs/{name}")
            assert got.status == 200
            assert got.body == data
            assert got.headers["Content-Length"] == str(len(data))
            assert got.headers["Docker-Content-Digest"] == name
            assert cache in got.headers["Cache-Status"]
        await mirror.events.wait_for(DownloadEnded, 4)
    assert upstream.count("blob", "GET") == 4
    assert upstream.count("manifest", "GET") == 2
    assert mirror.stored() == set(image.blob_digests)


async def test_unknown_media_types_are_kept(mirror: InProcessMirror, upstream: FakeRegistry) -> None:
    """B1: a registry stores any media type."""
    media_type = "application/vnd.example.unheard-of.v7+json"
    document = {"schemaVersion": 2, "mediaType": media_type, "anything": ["x"]}
    digest = upstream.add_manifest("team/app", document, media_type, "odd")
    for reference in ("odd", digest, "odd"):
        got = await mirror.get(f"{APP}/manifests/{reference}")
        assert got.body == json.dumps(document, indent=3).encode()
        assert got.headers["Content-Type"] == media_type


# --- wrong bytes ---


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_a_blob_is_the_same_by_tls(
    start_mirror: StartMirror, upstream: FakeRegistry, digest: str, tls: bool
) -> None:
    """B1: cold, warm and in part; without sendfile as with it."""
    mirror = await start_mirror(authority=trustme.CA() if tls else None)
    for _ in range(2):
        assert (await mirror.get(f"{APP}/blobs/{digest}")).body == BLOB
        part = await mirror.get(f"{APP}/blobs/{digest}", {"Range": "bytes=5-999990"})
        assert part.body == BLOB[5:999_991]
        await mirror.events.wait_for(DownloadEnded)


@pytest.mark.parametrize("chunked", [False, True], ids=["of known length", "of unknown length"])
@pytest.mark.parametrize("at", [0, 500_000, -1])
async def test_a_blob_with_wrong_bytes_never_ends_as_a_complete_response(
    mirror: InProcessMirror, upstream: FakeRegistry, digest: str, at: Any, chunked: bool
) -> None:
    """B2: nothing of it is kept, the next pull works, and the failure is counted."""
    fault = upstream.fault(Corrupt(at), *([Chunked()] if chunked else []), kind="blob", method="GET")
    with pytest.raises(aiohttp.ClientPayloadError):
        await mirror.get(f"{APP}/blobs/{digest}")
    await mirror.events.wait_for(DownloadEnded)
    assert fault.hits == 1
    assert mirror.stored() == set()
    assert mirror.staged() == []
    assert [event.where for event in mirror.events.of(VerificationFailed)] == ["upstream"]
    assert (await mirror.get(f"{APP}/blobs/{digest}")).body == BLOB
    assert upstream.count("blob", "GET") == 2


async def test_the_connection_of_a_wrong_blob_ends_by_fin_one_byte_short(
    mirror: InProcessMirror, upstream: FakeRegistry, digest: str
) -> None:
    """B2: containerd resumes after a FIN and gives up after an RST; `talk` raises at the latter."""
    upstream.fault(Corrupt(), kind="blob", method="GET")
    response = await mirror.send_raw(raw_get(f"{APP}/blobs/{digest}"))
    length, body = announced_length(response)
    assert length == len(BLOB)
    assert 0 < len(body) < length
    assert response.count(b"HTTP/1.1 ") == 1


async def test_all_but_the_last_byte_flow_before_the_upstream_has_ended(
    mirror: InProcessMirror, upstream: FakeRegistry, digest: str
) -> None:
    """B2: bytes flow at once; the last one waits for the verdict."""
    pause = upstream.pause(after=len(BLOB) - 1, kind="blob")
    async with mirror.open(f"{APP}/blobs/{digest}") as response:
        await response.content.readexactly(len(BLOB) - 2)
        assert not pause.is_open
        pause.release()
        assert len(await response.read()) == 2


@pytest.mark.parametrize("size", [len(BLOB), len(BLOB) - 1, len(BLOB) + 1])
async def test_a_size_that_a_manifest_claims_is_never_announced(
    mirror: InProcessMirror, upstream: FakeRegistry, digest: str, size: Any
) -> None:
    """B2, B48: anybody may write a manifest; a blob of unknown size comes in chunks, as often as needed."""
    layer = {"mediaType": LAYER, "digest": digest, "size": size}
    upstream.add_manifest("team/app", {"schemaVersion": 2, "config": {}, "layers": [layer]}, tag="1")
    await mirror.get(f"{APP}/manifests/1")
    upstream.fault(Chunked(), kind="blob", method="GET")
    got = await mirror.get(f"{APP}/blobs/{digest}")
    assert got.body == BLOB
    assert "Content-Length" not in got.headers
    await mirror.events.wait_for(DownloadEnded)
    again = await mirror.get(f"{APP}/blobs/{digest}")
    assert (again.body, again.headers["Content-Length"]) == (BLOB, str(len(BLOB)))
    assert upstream.count("blob") == 1


@pytest.mark.parametrize("body", [b"", b"{}", BLOB + b"more"], ids=["empty", "short", "long"])
async def test_a_blob_of_another_length_is_rejected_or_ends_short(
    mirror: InProcessMirror, upstream: FakeRegistry, digest: str, body: bytes
) -> None:
    """B2: an empty body has no byte to hold back, so that it becomes an error."""
    upstream.fault(Status(200, {}, body), kind="blob", method="GET")
    if body:
        with pytest.raises(aiohttp.ClientPayloadError):
            await mirror.get(f"{APP}/blobs/{digest}")
    else:
        got = await mirror.get(f"{APP}/blobs/{digest}")
        assert (got.status, got.code) == (502, "UNAVAILABLE")
    await mirror.events.wait_for(DownloadEnded)
    assert mirror.stored() == set()
    assert (await mirror.get(f"{APP}/blobs/{digest}")).body == BLOB


@pytest.mark.parametrize("is_json", [False, True], ids=["spoilt", "another manifest"])
async def test_a_manifest_that_does_not_match_its_digest_is_502(
    mirror: InProcessMirror, upstream: FakeRegistry, is_json: bool
) -> None:
    """B3: and nothing is stored."""
    image, other = upstream.add_image("team/app"), upstream.add_image("team/app", None, [b"other"])
    headers = {"Content-Type": other.media_type, "Docker-Content-Digest": image.digest}
    fault = Status(200, headers, other.manifest) if is_json else Corrupt()
    upstream.fault(fault, kind="manifest")
    got = await mirror.get(f"{APP}/manifests/{image.digest}")
    assert (got.status, got.code) == (502, "UNAVAILABLE")
    assert [event.kind for event in mirror.events.of(VerificationFailed)] == ["manifest"]
    assert (await mirror.get(f"{APP}/manifests/{image.digest}")).body == image.manifest
    assert upstream.count("manifest", "GET") == 2


async def test_the_digest_of_a_tag_is_that_of_its_body_despite_the_upstreams_header(
    mirror: InProcessMirror, upstream: FakeRegistry
) -> None:
    """B4: the header of the upstream is a claim, the hash is ours."""
    image, other = upstream.add_image("team/app", "1"), upstream.add_image("team/app", "2", [b"other"])
    upstream.fault(SetHeaders({"Docker-Content-Digest": other.digest}), kind="manifest", method="GET")
    got = await mirror.get(f"{APP}/manifests/1")
    assert got.headers["Docker-Content-Digest"] == image.digest
    assert got.body == image.manifest


async def test_a_tag_that_moves_between_head_and_get_has_the_digest_of_its_body(
    mirror: InProcessMirror, upstream: FakeRegistry
) -> None:
    """B4: HEAD reports that the tag moved, and GET returns yet another manifest."""
    images = [upstream.add_image("team/app", None, [b"%d" % number]) for number in range(3)]
    upstream.move_tag("team/app", "1", images[0].digest)
    assert (await mirror.get(f"{APP}/manifests/1")).body == images[0].manifest
    mirror.clock.advance(301)
    upstream.move_tag("team/app", "1", images[1].digest)
    hold = upstream.hold(kind="manifest", method="GET")
    asking = asyncio.create_task(mirror.get(f"{APP}/manifests/1"))
    await hold.wait_for_arrivals()
    upstream.move_tag("team/app", "1", images[2].digest)
    hold.release()
    got = await asking
    assert got.headers["Docker-Content-Digest"] == images[2].digest
    assert got.body == images[2].manifest
    assert upstream.count("manifest", "HEAD") == 1


# --- short bodies ---


@pytest.mark.parametrize(
    "action",
    [Reset(0), Reset(300_000), Truncate(300_000), Truncate(999_999)],
    ids=["reset at once", "reset", "fin", "fin before the last byte"],
)
async def test_a_body_that_breaks_off_is_never_complete_and_the_next_pull_works(
    mirror: InProcessMirror, upstream: FakeRegistry, digest: str, action: Action
) -> None:
    """B5: neither as a complete response nor in the store."""
    upstream.fault(action, kind="blob", method="GET")
    gone = upstream.fault(Status(404), kind="blob", method="GET", skip=1, times=None)
    response = await mirror.send_raw(raw_get(f"{APP}/blobs/{digest}"))
    length, body = announced_length(response)
    assert len(body) < length or response.startswith(b"HTTP/1.1 502 ")
    await mirror.events.wait_for(DownloadEnded)
    assert mirror.stored() == set()
    gone.remove()
    assert (await mirror.get(f"{APP}/blobs/{digest}")).body == BLOB


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_a_body_short_of_the_announced_length_ends_the_response_short(
    start_mirror: StartMirror, upstream: FakeRegistry, digest: str, tls: bool
) -> None:
    """B5: the bytes are right and are kept, but this client was promised more of them."""
    mirror = await start_mirror(authority=trustme.CA() if tls else None)
    pause = Pause(len(BLOB))
    upstream.fault(pause, WrongLength(+10), kind="blob", method="GET")
    pull = asyncio.create_task(mirror.get(f"{APP}/blobs/{digest}"))
    file = mirror.root / "staging" / digest.replace(":", "-")
    await wait_until(lambda: file.exists() and file.stat().st_size == len(BLOB), "every byte is here")
    pause.release()
    with pytest.raises(aiohttp.ClientPayloadError):
        await pull
    assert (await mirror.get(f"{APP}/blobs/{digest}")).body == BLOB
    await wait_until(lambda: mirror.stored() == {digest}, "it is stored")


async def test_a_truncated_body_with_a_matching_length_is_not_stored(
    mirror: InProcessMirror, upstream: FakeRegistry, digest: str
) -> None:
    """B5: Content-Length matches a body that is only a part of the blob."""
    upstream.fault(WrongLength(-10), kind="blob", method="GET")
    with pytest.raises(aiohttp.ClientPayloadError):
        await mirror.get(f"{APP}/blobs/{digest}")
    await mirror.events.wait_for(DownloadEnded)
    assert mirror.stored() == set()
    assert (await mirror.get(f"{APP}/blobs/{digest}")).body == BLOB


# --- the store's own faults ---


@pytest.mark.parametrize("damage", ["missing", "short", "empty", "long"])
async def test_a_stored_file_that_is_missing_or_has_another_size_is_fetched_again(
    mirror: InProcessMirror, upstream: FakeRegistry, digest: str, damage: str
) -> None:
    """B6: a correct response, a counter, the wrong file in quarantine; never an empty 200."""
    await mirror.get(f"{APP}/blobs/{digest}")
    await mirror.events.wait_for(DownloadEnded)
    path = mirror.blob_path(digest)
    match damage:
        case "missing":
            path.unlink()
        case "short":
            os.truncate(path, 1_000)
        case "empty":
            os.truncate(path, 0)
        case "long":
            path.write_bytes(BLOB + b"more")
    assert (await mirror.get(f"{APP}/blobs/{digest}")).body == BLOB
    await mirror.events.wait_for(DownloadEnded, 2)
    assert path.read_bytes() == BLOB
    assert upstream.count("blob", "GET") == 2
    wrong = 0 if damage == "missing" else 1
    assert [event.reason for event in mirror.events.of(BlobRemoved)] == ["corrupt"] * wrong
    assert [event.where for event in mirror.events.of(VerificationFailed)] == ["store"] * wrong
    assert len(list((mirror.root / "quarantine").iterdir())) == wrong


# --- errors ---


async def test_errors_carry_no_headers_of_content_and_valid_json(
    mirror: InProcessMirror, upstream: FakeRegistry, digest: str
) -> None:
    """B9: a client must not take an error for the blob."""
    upstream.fault(Status(500, {}, b"<html>oops</html>"), kind="blob", times=None)
    got = await mirror.get(f"{APP}/blobs/{digest}", {"Range": "bytes=0-9"})
    assert got.status == 502
    assert got.headers["Content-Type"] == "application/json"
    assert [set(error) for error in got.json()["errors"]] == [{"code", "message", "detail"}]
    absent = {"Docker-Content-Digest", "ETag", "Accept-Ranges", "Content-Range", "Cache-Control"}
    assert absent & set(got.headers) == set()


async def test_a_failure_after_the_first_byte_adds_nothing_to_the_body(
    mirror: InProcessMirror, upstream: FakeRegistry, digest: str
) -> None:
    """B9: the received bytes are a prefix of the blob."""
    upstream.fault(Truncate(300_000), kind="blob", method="GET")
    upstream.fault(Status(404), kind="blob", method="GET", skip=1, times=None)
    response = await mirror.send_raw(raw_get(f"{APP}/blobs/{digest}"))
    length, body = announced_length(response)
    assert length == len(BLOB)
    assert body == BLOB[: len(body)]
    assert 0 < len(body) <= 300_000
    (served,) = await mirror.events.wait_for(RequestServed)
    assert (served.status, served.sent_bytes) == (200, len(body))
    assert served.error != ""


# --- bodies that are no content ---


@pytest.mark.parametrize("action", [Html(), GzipEncoded()], ids=["captive portal", "gzip"])
@pytest.mark.parametrize("kind", ["blob", "manifest"])
async def test_pages_and_encoded_bodies_are_never_stored(
    mirror: InProcessMirror, upstream: FakeRegistry, kind: Kind, action: Action
) -> None:
    """B10: 502 before the first byte, and the next pull works."""
    image = upstream.add_image("team/app", "1", [BLOB])
    reference, body = {"blob": (image.layer_digests[0], BLOB), "manifest": ("1", image.manifest)}[kind]
    path = f"{APP}/{kind}s/{reference}"
    fault: Fault = upstream.fault(action, kind=kind, times=None)
    got = await mirror.get(path)
    assert (got.status, got.code) == (502, "UNAVAILABLE")
    fault.remove()
    assert mirror.stored() == set()
    assert (await mirror.get(path)).body == body


async def test_content_that_happens_to_be_gzip_is_passed_on_as_it_is(
    mirror: InProcessMirror, upstream: FakeRegistry
) -> None:
    """B10: layers are gzip files; they must not be decompressed on the way."""
    layer = gzip.compress(b"a layer" * 1_000, mtime=0)
    digest = upstream.add_blob("team/app", layer)
    for _ in range(2):
        got = await mirror.get(f"{APP}/blobs/{digest}", {"Accept-Encoding": "gzip, zstd"})
        assert got.body == layer
        assert "Content-Encoding" not in got.headers


# --- unknown lengths ---


@pytest.mark.parametrize("described", [True, False], ids=["size in a manifest", "size unknown"])
async def test_a_blob_of_unknown_length_arrives_completely(
    mirror: InProcessMirror, upstream: FakeRegistry, described: bool
) -> None:
    """B1, B5: the upstream sends chunks; stored, it has a length."""
    image = upstream.add_image("team/app", "1", [BLOB])
    (digest,) = image.layer_digests
    if described:
        await mirror.get(f"{APP}/manifests/1")
    upstream.fault(Chunked(), kind="blob", times=None)
    assert (await mirror.get(f"{APP}/blobs/{digest}")).body == BLOB
    await mirror.events.wait_for(DownloadEnded)
    got = await mirror.get(f"{APP}/blobs/{digest}")
    assert got.headers["Content-Length"] == str(len(BLOB))
    assert upstream.count("blob", "GET") == 1


async def test_an_old_client_gets_a_blob_of_unknown_length(
    mirror: InProcessMirror, upstream: FakeRegistry, digest: str
) -> None:
    """B57: HTTP/1.0 has no chunks, so that the length is waited for."""
    upstream.fault(Chunked(), kind="blob", times=None)
    response = await mirror.send_raw(f"GET {APP}/blobs/{digest} HTTP/1.0\r\n\r\n".encode())
    assert announced_length(response) == (len(BLOB), BLOB)


async def test_headers_that_the_upstream_leaves_out_are_made_up_for(
    mirror: InProcessMirror, upstream: FakeRegistry
) -> None:
    """B1: types from the document, digests from the bytes."""
    image = upstream.add_image("team/app", "1", [BLOB])
    names = ["Content-Type", "Docker-Content-Digest", "ETag", "Accept-Ranges"]
    upstream.fault(StripHeaders(names), times=None)
    got = await mirror.get(f"{APP}/manifests/1")
    assert got.headers["Content-Type"] == image.media_type
    assert got.headers["Docker-Content-Digest"] == image.digest
    got = await mirror.get(f"{APP}/blobs/{image.layer_digests[0]}")
    assert got.headers["Docker-Content-Digest"] == image.layer_digests[0]
    assert got.body == BLOB


async def test_bytes_flow_also_while_the_upstream_pauses(
    mirror: InProcessMirror, upstream: FakeRegistry, digest: str
) -> None:
    """B15: received bytes are sent at once."""
    pauses = [Pause(1), Pause(300_001), Pause(700_003)]
    upstream.fault(*pauses, kind="blob", method="GET")
    async with mirror.open(f"{APP}/blobs/{digest}") as response:
        received = b""
        for pause in pauses:
            received += await response.content.readexactly(pause.after - len(received))
            await pause.wait_for_arrivals()
            pause.release()
        assert received + await response.read() == BLOB
