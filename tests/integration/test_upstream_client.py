"""Manifests of an upstream that answers, rightly or wrongly; statuses and events."""

import json
from pathlib import Path
from typing import Any

import pytest

from regmirror.config.schema import Upstream
from regmirror.errors import (
    UpstreamContentInvalid,
    UpstreamDenied,
    UpstreamFailed,
    UpstreamNotFound,
    UpstreamRateLimited,
    UpstreamUnreachable,
)
from regmirror.oci.manifests import (
    ACCEPTED,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    MANIFEST_MAX,
    OCI_INDEX,
    OCI_MANIFEST,
)
from regmirror.oci.names import Digest, Repository, Tag
from regmirror.telemetry.events import (
    BytesFetched,
    RateLimitSeen,
    UpstreamRequestEnded,
    VerificationFailed,
)
from regmirror.upstream.client import ManifestHead
from regmirror.upstream.registry import Upstreams
from tests.fake_registry import (
    Chunked,
    Corrupt,
    FakeRegistry,
    FakeStorage,
    GzipEncoded,
    Html,
    RateLimit,
    Redirect,
    Reset,
    SetHeaders,
    Status,
    StripHeaders,
    Truncate,
    random_bytes,
)
from tests.integration.asking import ALPINE, LATEST, NAME, NOTHING, asking

LAYER = random_bytes(300_000, seed=1)


@pytest.fixture
def image(upstream: Any) -> Any:
    return upstream.add_image("library/alpine", "latest", [LAYER])


@pytest.fixture
async def client(upstream: Any) -> Any:
    async with asking(upstream.url) as client:
        yield client


@pytest.fixture
async def cdn(upstream: Any) -> Any:
    async with FakeStorage(upstream) as cdn:
        yield cdn


@pytest.fixture
def layer(image: Any) -> Any:
    return Digest(image.layer_digests[0])


# --- manifests ---


async def test_a_head_tells_what_a_tag_names(client: Any, image: Any) -> None:
    head = await client.head_manifest(ALPINE, LATEST)
    assert head == ManifestHead(Digest(image.digest), OCI_MANIFEST, len(image.manifest))


async def test_a_head_without_a_digest_says_so(client: Any, upstream: Any, image: Any) -> None:
    """B25: the caller then asks by GET."""
    upstream.fault(StripHeaders(["Docker-Content-Digest"]), times=None)
    assert (await client.head_manifest(ALPINE, LATEST)).digest is None


@pytest.mark.parametrize("claimed", ["", "sha256:abc", "md5:0", "nonsense"])
async def test_a_digest_that_is_none_is_not_believed(
    client: Any, upstream: Any, image: Any, claimed: str
) -> None:
    upstream.fault(SetHeaders({"Docker-Content-Digest": claimed}), times=None)
    assert (await client.head_manifest(ALPINE, LATEST)).digest is None


@pytest.mark.parametrize("status", [405, 501])
async def test_an_upstream_without_head_is_no_failure(
    client: Any, upstream: Any, image: Any, status: int
) -> None:
    """B25."""
    upstream.fault(Status(status), method="HEAD", times=None)
    assert await client.head_manifest(ALPINE, LATEST) == ManifestHead(None, "", None)


@pytest.mark.parametrize("reference", ["tag", "digest"])
async def test_a_manifest_is_kept_byte_for_byte(client: Any, image: Any, reference: str) -> None:
    """B1."""
    wanted = LATEST if reference == "tag" else Digest(image.digest)
    manifest = await client.get_manifest(ALPINE, wanted)
    assert manifest.payload == image.manifest
    assert manifest.digest == image.digest
    assert manifest.media_type == OCI_MANIFEST


async def test_every_kind_of_manifest_keeps_its_media_type(client: Any, upstream: Any) -> None:
    """B1: indexes, Docker's types, unknown ones."""
    docker = upstream.add_image("library/alpine", "docker", docker=True)
    upstream.add_index("library/alpine", "list", [docker], docker=True)
    upstream.add_index("library/alpine", "index", [docker])
    body = {"schemaVersion": 2, "mediaType": "application/x.y+json"}
    upstream.add_manifest("library/alpine", body, "application/x.y+json", tag="odd")
    types = [
        (await client.get_manifest(ALPINE, Tag(tag))).media_type for tag in ("docker", "list", "index", "odd")
    ]
    assert types == [DOCKER_MANIFEST, DOCKER_LIST, OCI_INDEX, "application/x.y+json"]


async def test_a_sha512_digest_is_verified_in_its_own_algorithm(client: Any, upstream: Any) -> None:
    """B1, B4."""
    image = upstream.add_image("library/alpine", "latest", algorithm="sha512")
    assert (await client.get_manifest(ALPINE, Digest(image.digest))).digest == image.digest
    assert (await client.get_manifest(ALPINE, LATEST)).digest == image.digest


@pytest.mark.parametrize("claimed", [NOTHING, "nonsense", ""])
async def test_by_tag_our_own_hash_counts(client: Any, upstream: Any, image: Any, claimed: Any) -> None:
    """B4: a wrong header is ignored."""
    upstream.fault(SetHeaders({"Docker-Content-Digest": claimed}), times=None)
    assert (await client.get_manifest(ALPINE, LATEST)).digest == image.digest


async def test_by_digest_other_bytes_are_a_lie(client: Any, upstream: Any, image: Any) -> None:
    """B3."""
    other = upstream.add_image("library/alpine", "other", [b"other"])
    content = upstream.repository("library/alpine")
    content.manifests[image.digest] = content.manifests[other.digest]
    with pytest.raises(UpstreamContentInvalid) as caught:
        await client.get_manifest(ALPINE, Digest(image.digest))
    assert caught.value.reason == "digest"
    assert client.told(VerificationFailed) == [VerificationFailed(NAME, "manifest", image.digest, "upstream")]


@pytest.mark.parametrize(
    "action", [Html(), GzipEncoded(), SetHeaders({"Content-Encoding": "br"}), Corrupt(at=0)]
)
async def test_what_is_no_manifest_is_a_lie(client: Any, upstream: Any, image: Any, action: Any) -> None:
    """B10: a captive portal's page, an encoded body, broken JSON; by tag as well."""
    upstream.fault(action, times=None)
    with pytest.raises(UpstreamContentInvalid):
        await client.get_manifest(ALPINE, LATEST)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b'{"errors":[{"code":"UNKNOWN"}]}',
        b'{"status":"ok"}',
        b"<html></html>",
        b"[" * 100_000,
    ],
)
async def test_a_document_of_another_shape_is_a_lie(client: Any, upstream: Any, payload: bytes) -> None:
    """B10: an error or a status page that is sent with 200."""
    upstream.add_manifest("library/alpine", payload, "application/json", tag="latest")
    with pytest.raises(UpstreamContentInvalid):
        await client.get_manifest(ALPINE, LATEST)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("application/json", OCI_MANIFEST),
        ("text/plain; charset=utf-8", OCI_MANIFEST),
        (f"{DOCKER_MANIFEST}; charset=utf-8", DOCKER_MANIFEST),
    ],
)
async def test_a_vague_content_type_is_made_precise(
    client: Any, upstream: Any, image: Any, said: str, expected: Any
) -> None:
    """B51."""
    upstream.fault(SetHeaders({"Content-Type": said}), times=None)
    assert (await client.get_manifest(ALPINE, LATEST)).media_type == expected


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_manifest_that_is_too_large_is_refused_while_it_is_read(
    client: Any, upstream: Any, is_chunked: bool
) -> None:
    """B100: by its announced length, or when it has grown too long."""
    huge = b'{"schemaVersion":2,"x":"' + b"x" * MANIFEST_MAX + b'"}'
    upstream.add_manifest("library/alpine", huge, tag="latest")
    if is_chunked:
        upstream.fault(Chunked(), times=None)
    with pytest.raises(UpstreamFailed) as caught:
        await client.get_manifest(ALPINE, LATEST)
    assert caught.value.reason == "too-large"


async def test_a_manifest_that_is_announced_too_large_is_not_read(client: Any, upstream: Any) -> None:
    """B100."""
    upstream.add_manifest("library/alpine", b"{" + b" " * MANIFEST_MAX, tag="latest")
    pause = upstream.pause(after=1, kind="manifest")
    with pytest.raises(UpstreamFailed, match="announces"):
        await client.get_manifest(ALPINE, LATEST)
    pause.release()


@pytest.mark.parametrize("payload", [b'{"errors":[]}', b'{"status":"ok"}'])
async def test_a_document_that_only_says_it_is_a_manifest_is_a_lie(
    client: Any, upstream: Any, payload: bytes
) -> None:
    """B10: every answer of some proxies carries the Content-Type of the last one."""
    upstream.add_manifest("library/alpine", payload, OCI_MANIFEST, tag="latest")
    with pytest.raises(UpstreamContentInvalid):
        await client.get_manifest(ALPINE, LATEST)


async def test_a_manifest_of_the_largest_size_is_taken(client: Any, upstream: Any) -> None:
    largest = b'{"schemaVersion":2,"mediaType":"a/b","x":"'
    largest += b"x" * (MANIFEST_MAX - len(largest) - 2) + b'"}'
    upstream.add_manifest("library/alpine", largest, "a/b", tag="latest")
    assert (await client.get_manifest(ALPINE, LATEST)).size == MANIFEST_MAX


@pytest.mark.parametrize("action", [Truncate(10), Reset(10)])
async def test_a_manifest_that_is_cut_is_a_failure(
    client: Any, upstream: Any, image: Any, action: Any
) -> None:
    """B5; aiohttp does not repeat a request whose answer has begun."""
    upstream.fault(action)
    with pytest.raises(UpstreamFailed) as caught:
        await client.get_manifest(ALPINE, LATEST)
    assert caught.value.reason == "truncated"
    assert (await client.get_manifest(ALPINE, LATEST)).payload == image.manifest


async def test_a_manifest_is_had_through_a_redirect(client: Any, upstream: Any, image: Any) -> None:
    """Protocol 3.5: registry.k8s.io redirects manifests too."""
    async with FakeRegistry() as region:
        region.add_image("k8s/alpine", "latest", [LAYER])
        location = f"{region.url}/v2/k8s/alpine/manifests/latest"
        upstream.fault(Redirect(location), kind="manifest", times=None)
        assert (await client.get_manifest(ALPINE, LATEST)).payload == image.manifest
        assert (await client.head_manifest(ALPINE, LATEST)).digest == image.digest


async def test_the_request_for_a_manifest_is_ours_alone(client: Any, upstream: Any, image: Any) -> None:
    """B51, B65: one Accept line, identity, our name; nothing of any client."""
    await client.get_manifest(ALPINE, LATEST)
    (request,) = upstream.requests
    assert request.headers.getall("Accept") == [", ".join(ACCEPTED)]
    assert request.headers["Accept-Encoding"] == "identity"
    assert request.headers["User-Agent"].startswith("regmirror/")
    assert set(request.headers) == {"Host", "Accept", "Accept-Encoding", "User-Agent"}


async def test_cookies_are_not_kept(client: Any, upstream: Any, image: Any) -> None:
    """B55."""
    upstream.fault(SetHeaders({"Set-Cookie": "a=b; Path=/"}), times=None)
    await client.get_manifest(ALPINE, LATEST)
    await client.get_manifest(ALPINE, LATEST)
    assert "Cookie" not in upstream.requests[1].headers


async def test_a_netrc_file_is_not_looked_at(
    client: Any, upstream: Any, image: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B61: its passwords would go to whatever host a redirect names."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login alice password s3cret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    await client.get_manifest(ALPINE, LATEST)
    assert upstream.requests[0].authorization is None


# --- statuses and events ---


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, UpstreamFailed),
        (401, UpstreamDenied),
        (403, UpstreamDenied),
        (404, UpstreamNotFound),
        (429, UpstreamRateLimited),
        (500, UpstreamFailed),
        (502, UpstreamFailed),
        (503, UpstreamFailed),
    ],
)
async def test_every_status_is_told_apart(
    upstream: Any, image: Any, layer: Any, status: int, error: Any
) -> None:
    """B34."""
    upstream.fault(Status(status), times=None)
    for ask in (
        lambda client: client.head_manifest(ALPINE, LATEST),
        lambda client: client.get_manifest(ALPINE, LATEST),
        lambda client: client.head_blob(ALPINE, layer),
        lambda client: client.fetch(layer),
        lambda client: client.list_tags(ALPINE),
    ):
        async with asking(upstream.url) as client:  # one that remembers nothing
            with pytest.raises(error) as caught:
                await ask(client)
        assert type(caught.value) is error
        assert caught.value.upstream == NAME


async def test_a_limit_says_how_long_to_wait(client: Any, upstream: Any, image: Any) -> None:
    """B30."""
    upstream.rate_limit = RateLimit(remaining=0, retry_after=7)
    with pytest.raises(UpstreamRateLimited) as caught:
        await client.get_manifest(ALPINE, LATEST)
    assert caught.value.retry_after == 7.0


async def test_rate_limits_are_told(client: Any, upstream: Any, image: Any) -> None:
    """B31: on HEAD and GET."""
    upstream.rate_limit = RateLimit(limit=100, remaining=76)
    await client.head_manifest(ALPINE, LATEST)
    await client.get_manifest(ALPINE, LATEST)
    assert client.told(RateLimitSeen) == [
        RateLimitSeen(NAME, 100, 76),
        RateLimitSeen(NAME, 100, 75),
    ]


async def test_every_request_and_all_bytes_are_told(
    client: Any, cdn: Any, upstream: Any, image: Any, layer: Any
) -> None:
    """B81: paths without their queries, storage included."""
    await client.get_manifest(ALPINE, LATEST)
    await client.fetch(layer)
    answered = client.told(UpstreamRequestEnded)
    assert [(event.kind, event.method, event.status) for event in answered] == [
        ("manifest", "GET", 200),
        ("blob", "GET", 307),
        ("blob", "GET", 200),
    ]
    assert all("?" not in event.path for event in answered)
    assert client.told(BytesFetched) == [
        BytesFetched(NAME, "manifest", len(image.manifest)),
        BytesFetched(NAME, "blob", len(LAYER)),
    ]


async def test_offline_nothing_is_connected(upstream: Any, image: Any, layer: Any) -> None:
    """B37."""
    async with asking(upstream.url, offline=True) as client:
        for ask in (
            client.head_manifest(ALPINE, LATEST),
            client.get_manifest(ALPINE, LATEST),
            client.head_blob(ALPINE, layer),
            client.fetch(layer),
            client.list_tags(ALPINE),
            client.list_referrers(ALPINE, layer),
        ):
            with pytest.raises(UpstreamUnreachable) as caught:
                await ask
            assert caught.value.reason == "offline"
    assert upstream.connections == 0


async def test_upstreams_are_a_closed_list(upstream: Any, image: Any) -> None:
    """B59: by canonical name; closing closes all."""
    upstreams = Upstreams({NAME: Upstream(url=upstream.url)}, emit=lambda event: None)
    assert list(upstreams) == [NAME]
    assert "evil.example" not in upstreams
    assert (await upstreams[NAME].get_manifest(ALPINE, LATEST)).digest == image.digest
    await upstreams.close()
    with pytest.raises(UpstreamUnreachable):
        await upstreams[NAME].get_manifest(ALPINE, LATEST)


async def test_names_of_every_shape_reach_the_upstream_unchanged(client: Any, upstream: Any) -> None:
    """B52: components named like the API's own."""
    name = "blobs/uploads/manifests.tags__x/a-b"
    image = upstream.add_image(name, "Tag_1.2-x")
    found = await client.get_manifest(Repository(NAME, name), Tag("Tag_1.2-x"))
    assert found.digest == image.digest
    assert json.loads(found.payload)["schemaVersion"] == 2
    assert upstream.requests[0].path == f"/v2/{name}/manifests/Tag_1.2-x"
