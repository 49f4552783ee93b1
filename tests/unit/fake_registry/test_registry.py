"""The fake registry is a registry: it has content and keeps to the protocol."""

import hashlib
import json
from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.fake_registry import (
    DOCKER_MANIFEST,
    INDEX,
    MANIFEST,
    FakeRegistry,
    RateLimit,
    Repeated,
    random_bytes,
    read_all,
)

LAYER = random_bytes(300_000)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session


@pytest.fixture
async def upstream() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as registry:
        yield registry


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


# --- content ---


def test_random_bytes_are_the_same_for_the_same_seed_only() -> None:
    assert random_bytes(1000, seed=1) == random_bytes(1000, seed=1)
    assert random_bytes(1000, seed=1) != random_bytes(1000, seed=2)


def test_a_repeated_source_reads_the_same_from_anywhere() -> None:
    source = Repeated(3_000_000, seed=7)
    whole = read_all(source)
    assert len(whole) == 3_000_000
    assert source.digest() == sha256(whole)
    assert b"".join(source.pieces(1_048_000, 2_200_000)) == whole[1_048_000:2_200_000]


async def test_an_image_is_served_byte_for_byte(upstream: FakeRegistry, http: aiohttp.ClientSession) -> None:
    image = upstream.add_image("library/alpine", "3.20", [LAYER, b""], annotations={"a": "ä"})
    url = f"{upstream.url}/v2/library/alpine"
    async with http.get(f"{url}/manifests/3.20") as response:
        assert await response.read() == image.manifest
        assert response.headers["Content-Type"] == MANIFEST
        assert response.headers["Docker-Content-Digest"] == sha256(image.manifest) == image.digest
        assert response.headers["ETag"] == f'"{image.digest}"'
        assert response.headers["Content-Length"] == str(len(image.manifest))
        assert response.headers["Docker-Distribution-Api-Version"] == "registry/2.0"
    for digest, body in zip(image.blob_digests, [image.config, LAYER, b""], strict=True):
        async with http.get(f"{url}/blobs/{digest}") as response:
            assert await response.read() == body
            assert response.headers["Docker-Content-Digest"] == digest == sha256(body)


async def test_head_has_the_headers_of_get_and_no_body(
    upstream: FakeRegistry, http: aiohttp.ClientSession
) -> None:
    image = upstream.add_image("a", "1", [b""])
    for path in ("manifests/1", f"blobs/{image.config_digest}", f"blobs/{image.layer_digests[0]}"):
        async with http.get(f"{upstream.url}/v2/a/{path}") as got:
            await got.read()
        async with http.head(f"{upstream.url}/v2/a/{path}") as head:
            expected = {name: value for name, value in got.headers.items() if name != "Date"}
            assert {name: value for name, value in head.headers.items() if name != "Date"} == expected
            assert await head.read() == b""


async def test_an_index_names_its_images_and_their_platforms(
    upstream: FakeRegistry, http: aiohttp.ClientSession
) -> None:
    images = [
        upstream.add_image("a", layers=[b"1"], platform="linux/amd64"),
        upstream.add_image("a", layers=[b"2"], platform="linux/arm/v7", docker=True),
    ]
    upstream.add_index("a", "multi", images)
    async with http.get(f"{upstream.url}/v2/a/manifests/multi") as response:
        assert response.headers["Content-Type"] == INDEX
        entries = json.loads(await response.read())["manifests"]
    assert [entry["digest"] for entry in entries] == [image.digest for image in images]
    assert entries[1]["platform"] == {"os": "linux", "architecture": "arm", "variant": "v7"}
    assert entries[1]["mediaType"] == DOCKER_MANIFEST


async def test_sha512_content_is_found_by_its_sha512_digest(
    upstream: FakeRegistry, http: aiohttp.ClientSession
) -> None:
    image = upstream.add_image("a", "1", [b"layer"], algorithm="sha512")
    assert image.layer_digests == ("sha512:" + hashlib.sha512(b"layer").hexdigest(),)
    async with http.get(f"{upstream.url}/v2/a/manifests/1") as response:
        assert response.headers["Docker-Content-Digest"] == image.digest
        assert image.digest.startswith("sha512:")


async def test_tags_move_and_go(upstream: FakeRegistry, http: aiohttp.ClientSession) -> None:
    old = upstream.add_image("a", "latest", [b"old"])
    new = upstream.add_image("a", layers=[b"new"])
    url = f"{upstream.url}/v2/a/manifests"
    upstream.move_tag("a", "latest", new.digest)
    async with http.get(f"{url}/latest") as response:
        assert await response.read() == new.manifest
    async with http.get(f"{url}/{old.digest}") as response:
        assert await response.read() == old.manifest
    upstream.remove_tag("a", "latest")
    async with http.get(f"{url}/latest") as response:
        assert response.status == 404
        assert (await response.json())["errors"][0]["code"] == "MANIFEST_UNKNOWN"


async def test_a_blob_belongs_to_its_repository_only(
    upstream: FakeRegistry, http: aiohttp.ClientSession
) -> None:
    digest = upstream.add_blob("a", b"data")
    upstream.add_image("b", "1")
    async with http.get(f"{upstream.url}/v2/b/blobs/{digest}") as response:
        assert response.status == 404
        assert (await response.json())["errors"][0]["code"] == "BLOB_UNKNOWN"


# --- protocol ---


@pytest.mark.parametrize(
    ("requested", "status", "content_range", "body"),
    [
        ("bytes=2-5", 206, "bytes 2-5/10", b"2345"),
        ("bytes=7-", 206, "bytes 7-9/10", b"789"),
        ("bytes=-3", 206, "bytes 7-9/10", b"789"),
        ("bytes=-30", 206, "bytes 0-9/10", b"0123456789"),
        ("bytes=8-5000", 206, "bytes 8-9/10", b"89"),
        ("bytes=10-", 416, "bytes */10", b""),
        ("bytes=5-0", 416, "bytes */10", b""),
        ("bytes=0-1,3-4", 200, None, b"0123456789"),
        ("pages=1-2", 200, None, b"0123456789"),
    ],
)
async def test_ranges_of_blobs(
    upstream: FakeRegistry,
    http: aiohttp.ClientSession,
    requested: str,
    status: int,
    content_range: str | None,
    body: bytes,
) -> None:
    digest = upstream.add_blob("a", b"0123456789")
    async with http.get(f"{upstream.url}/v2/a/blobs/{digest}", headers={"Range": requested}) as response:
        assert response.status == status
        assert response.headers.get("Content-Range") == content_range
        assert response.headers["Content-Length"] == str(len(body))
        assert await response.read() == body


async def test_if_range_with_another_etag_gets_everything(
    upstream: FakeRegistry, http: aiohttp.ClientSession
) -> None:
    digest = upstream.add_blob("a", b"0123456789")
    url = f"{upstream.url}/v2/a/blobs/{digest}"
    async with http.get(url, headers={"Range": "bytes=5-", "If-Range": '"other"'}) as response:
        assert response.status == 200
    async with http.get(url, headers={"Range": "bytes=5-", "If-Range": f'"{digest}"'}) as response:
        assert response.status == 206


async def test_if_none_match_gets_304(upstream: FakeRegistry, http: aiohttp.ClientSession) -> None:
    image = upstream.add_image("a", "1")
    headers = {"If-None-Match": f'"other", W/"{image.digest}"'}
    async with http.get(f"{upstream.url}/v2/a/manifests/1", headers=headers) as response:
        assert response.status == 304
        assert response.headers["Docker-Content-Digest"] == image.digest
        assert "Content-Length" not in response.headers
        assert await response.read() == b""


async def test_tags_come_in_pages_whose_links_lead_to_the_end(
    upstream: FakeRegistry, http: aiohttp.ClientSession
) -> None:
    for tag in ("b", "a", "d", "c", "e"):
        upstream.add_image("team/app", tag)
    upstream.page_size = 3
    path, pages = "/v2/team/app/tags/list?n=2", []
    while path:
        async with http.get(f"{upstream.url}{path}") as response:
            pages.append((await response.json())["tags"])
            link = response.headers.get("Link", "")
        path = link.partition(";")[0].strip("<>")
    assert pages == [["a", "b"], ["c", "d"], ["e"]]


@pytest.mark.parametrize(
    ("query", "status", "tags", "linked"),
    [
        ("", 200, ["1", "2"], False),
        ("?n=0", 200, [], False),
        ("?n=-1", 400, None, False),
        ("?n=abc", 400, None, False),
        ("?last=1", 200, ["2"], False),
        ("?last=15", 200, ["2"], False),
        ("?n=1", 200, ["1"], True),
    ],
)
async def test_tag_list_parameters(
    upstream: FakeRegistry,
    http: aiohttp.ClientSession,
    query: str,
    status: int,
    tags: list[str],
    linked: bool,
) -> None:
    upstream.add_image("a", "1")
    upstream.add_image("a", "2")
    async with http.get(f"{upstream.url}/v2/a/tags/list{query}") as response:
        assert response.status == status
        assert (await response.json()).get("tags") == tags
        assert ("Link" in response.headers) == linked


async def test_the_catalog_lists_repositories(upstream: FakeRegistry, http: aiohttp.ClientSession) -> None:
    upstream.add_image("b", "1")
    upstream.add_image("a", "1")
    async with http.get(f"{upstream.url}/v2/_catalog") as response:
        assert await response.json() == {"repositories": ["a", "b"]}


async def test_referrers_are_listed_and_filtered(upstream: FakeRegistry, http: aiohttp.ClientSession) -> None:
    image = upstream.add_image("a", "1")
    sbom = upstream.add_referrer("a", image.digest, "application/x.sbom", annotations={"k": "v"})
    upstream.add_referrer("a", image.digest, "application/x.sig")
    url = f"{upstream.url}/v2/a/referrers/{image.digest}"
    async with http.get(url) as response:
        assert response.headers["Content-Type"] == INDEX
        assert len(json.loads(await response.read())["manifests"]) == 2
        assert "OCI-Filters-Applied" not in response.headers
    async with http.get(url, params={"artifactType": "application/x.sbom"}) as response:
        (entry,) = json.loads(await response.read())["manifests"]
        assert response.headers["OCI-Filters-Applied"] == "artifactType"
    assert (entry["digest"], entry["artifactType"]) == (sbom, "application/x.sbom")
    assert entry["annotations"] == {"k": "v"}


async def test_referrers_may_be_missing_and_then_have_a_tag(
    upstream: FakeRegistry, http: aiohttp.ClientSession
) -> None:
    image = upstream.add_image("a", "1")
    upstream.add_referrer("a", image.digest)
    upstream.has_referrers = False
    upstream.add_referrers_tag("a", image.digest)
    async with http.get(f"{upstream.url}/v2/a/referrers/{image.digest}") as response:
        assert response.status == 404
    async with http.get(f"{upstream.url}/v2/a/manifests/{image.digest.replace(':', '-')}") as response:
        assert len(json.loads(await response.read())["manifests"]) == 1


async def test_referrers_of_an_unknown_digest_are_empty(
    upstream: FakeRegistry, http: aiohttp.ClientSession
) -> None:
    async with http.get(f"{upstream.url}/v2/none/referrers/{sha256(b'')}") as response:
        assert response.status == 200
        assert json.loads(await response.read())["manifests"] == []


async def test_pushing_is_rejected_and_recorded(upstream: FakeRegistry, http: aiohttp.ClientSession) -> None:
    async with http.post(f"{upstream.url}/v2/a/blobs/uploads/", data=b"x") as response:
        assert response.status == 405
    async with http.put(f"{upstream.url}/v2/a/manifests/1", data=b"{}") as response:
        assert response.status == 405
    assert [(request.kind, request.method) for request in upstream.requests] == [
        ("upload", "POST"),
        ("manifest", "PUT"),
    ]


async def test_a_strict_registry_requires_the_media_type_on_any_accept_line(
    upstream: FakeRegistry, http: aiohttp.ClientSession
) -> None:
    upstream.add_image("a", "1")
    upstream.strict_accept = True
    url = f"{upstream.url}/v2/a/manifests/1"
    async with http.get(url, headers=[("Accept", INDEX)]) as response:
        assert response.status == 404
    async with http.get(url, headers=[("Accept", INDEX), ("Accept", f"text/x, {MANIFEST}")]) as response:
        assert response.status == 200


async def test_the_rate_limit_counts_gets_of_manifests_only(
    upstream: FakeRegistry, http: aiohttp.ClientSession
) -> None:
    upstream.add_image("a", "1")
    upstream.rate_limit = RateLimit(limit=100, remaining=1)
    url = f"{upstream.url}/v2/a/manifests/1"
    async with http.head(url) as response:
        assert response.headers["ratelimit-remaining"] == "1;w=21600"
    async with http.get(url) as response:
        assert response.headers["ratelimit-limit"] == "100;w=21600"
        assert response.headers["ratelimit-remaining"] == "0;w=21600"
    async with http.get(url) as response:
        assert response.status == 429
        assert response.headers["Retry-After"] == "60"
        assert (await response.json())["errors"][0]["code"] == "TOOMANYREQUESTS"
