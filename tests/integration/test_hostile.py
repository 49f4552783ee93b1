"""Hostile clients and upstreams: paths, headers and documents."""

import asyncio
import json
import random
from typing import Any

import pytest

from regmirror.telemetry.events import RequestServed
from tests.conftest import StartMirror
from tests.fake_registry import INDEX, MANIFEST, FakeRegistry, Image, SetHeaders, Status
from tests.mirror_fixture import InProcessMirror

TAG = "/v2/team/app/manifests/1"
DIGEST = "sha256:" + "0" * 64
LONG = "a" * 256


@pytest.fixture
def image(upstream: FakeRegistry) -> Image:
    return upstream.add_image("team/app", "1")


def parse(received: bytes) -> tuple[int, str, bytes]:
    """Status, header block and body of the one response in ``received``."""
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), head.decode("latin-1"), body


async def ask(
    mirror: InProcessMirror, target: str, *lines: str, method: str = "GET"
) -> tuple[int, str, bytes]:
    """Send the request target byte for byte as it is written."""
    text = "".join(f"{line}\r\n" for line in ("Host: mirror", "Connection: close", *lines))
    return parse(await mirror.send_raw(f"{method} {target} HTTP/1.1\r\n{text}\r\n".encode("latin-1")))


# --- paths ---


@pytest.mark.parametrize(
    ("written", "name", "reference"),
    [
        ("/v2/team%2Fapp/manifests/1", "team/app", "1"),
        ("/v2/te%61m/app/manifests/%31", "team/app", "1"),
        ("%2Fv2/team/app/manifests/1", None, None),
        ("/v2/blobs/uploads/manifests/latest", "blobs/uploads", "latest"),
        ("/v2/a/tags/list/manifests/1", "a/tags/list", "1"),
        ("/v2/manifests/manifests/manifests", "manifests", "manifests"),
        ("/v2/uploads/blobs/manifests/tags", "uploads/blobs", "tags"),
        ("/v2/a/blobs/sha256/manifests/referrers", "a/blobs/sha256", "referrers"),
    ],
)
async def test_names_are_taken_as_they_are_meant(
    mirror: InProcessMirror, upstream: FakeRegistry, written: str, name: str | None, reference: str | None
) -> None:
    """B52: decoded once, and routed from the right end."""
    if name:
        image = upstream.add_image(name, reference)

    status, _, body = await ask(mirror, written)

    if name:
        assert (status, body) == (200, image.manifest)
        assert upstream.find("manifest")[0].path == f"/v2/{name}/manifests/{reference}"
    else:
        assert status in (400, 404)


async def test_a_digest_may_be_percent_encoded(
    mirror: InProcessMirror, upstream: FakeRegistry, image: Image
) -> None:
    """B52: sha256%3A as some clients write it."""
    for kind, digest in (("manifests", image.digest), ("blobs", image.config_digest)):
        status, _, body = await ask(mirror, f"/v2/team/app/{kind}/{digest.replace(':', '%3A')}")
        assert status == 200
        assert body in (image.manifest, image.config)


BAD_TARGETS = [
    "/v2/../../etc/passwd",
    "/v2/../v2/team/app/manifests/1",
    "/v2/team/../app/manifests/1",
    "/v2/team/./app/manifests/1",
    "/v2/%2e%2e/%2e%2e/etc/passwd/manifests/1",
    "/v2/..%2f..%2f..%2fetc%2fpasswd/blobs/" + DIGEST,
    "/v2/team/app/blobs/..%2f..%2f..%2fetc%2fpasswd",
    "/v2/team/app/blobs/sha256:..%2f..%2fregmirror.db",
    "/v2/team/app/blobs/sha256:" + "0" * 63,
    "/v2/team/app/blobs/sha256:" + "F" * 64,
    "/v2/team/app/blobs/sha256%253A" + "0" * 64,
    "/v2/team/app/blobs/md5:" + "0" * 32,
    "/v2/team/app/blobs/" + DIGEST + "%00",
    "/v2/team/app/manifests/..",
    "/v2/team/app/manifests/1%00",
    "/v2/team/app/manifests/1%0d%0aX:1",
    "/v2/team/app/manifests/1%2F2",
    "/v2/team/app/manifests/" + "t" * 129,
    "/v2/team/app/manifests/.INVALID_MANIFEST_NAME",
    "/v2/team/app/manifests/",
    "/v2//team/app/manifests/1",
    "/v2/team//app/manifests/1",
    "/v2/team/app//manifests/1",
    "/v2/team/app/manifests//1",
    "/v2/team/app/manifests/1/",
    "//v2/team/app/manifests/1",
    "/v2/Team/app/manifests/1",
    "/v2/team/APP/tags/list",
    "/v2/" + LONG + "/manifests/1",
    "/v2/" + "a/" * 130 + "manifests/1",
    "/v2/team%00/app/manifests/1",
    "/v2/team%2F..%2Fapp/manifests/1",
    "/v2/%ff%fe/manifests/1",
    "/v2/team app/manifests/1".replace(" ", "%20"),
    "/v2/-team/app/manifests/1",
    "/v2/team;x=1/app/manifests/1",
    "/v2/manifests/1",
    "/v2/blobs/" + DIGEST,
    "/v2/team/app/referrers/latest",
    "/v2/team/app/referrers/sha256:..",
    "/v2/_catalog/../team/app/manifests/1",
    "/registry.test/../v2/team/app/manifests/1",
    "/registry.test%2fv2/team/app/blobs/x",
    "/v2/team/app/manifests/1?ns=..%2f..",
    "/v2/team/app/manifests/1?ns=%ff",
    "/v2/team/app/manifests/1?ns=a%00b",
    "/v2/team/app/manifests/1?ns=evil.example&ns=registry.test",
]


async def test_bad_paths_are_rejected_without_an_upstream_request(
    mirror: InProcessMirror, upstream: FakeRegistry, image: Image
) -> None:
    """B52: 400 or 404 in the API's form, U = 0, and no file is opened."""
    upstream.add_blob("team/app", b"0")
    before = sorted(str(path) for path in mirror.root.rglob("*"))

    for target in BAD_TARGETS:
        for method in ("GET", "HEAD"):
            status, head, body = await ask(mirror, target, method=method)
            assert status in (400, 404), target
            if method == "HEAD":
                assert body == b""
            elif "application/json" in head:
                assert json.loads(body)["errors"][0]["code"].isupper()
            if target.startswith("/v2"):
                assert "application/json" in head, target
                assert "docker-distribution-api-version: registry/2.0" in head.lower()
    assert upstream.connections == 0
    assert sorted(str(path) for path in mirror.root.rglob("*")) == before


async def test_a_long_name_that_is_allowed_is_asked_for(
    mirror: InProcessMirror, upstream: FakeRegistry
) -> None:
    """B52: 255 characters are a name."""
    image = upstream.add_image("a" * 255, "1")

    assert (await mirror.get(f"/v2/{'a' * 255}/manifests/1")).body == image.manifest


async def test_an_absolute_target_names_this_mirror(
    mirror: InProcessMirror, upstream: FakeRegistry, image: Image
) -> None:
    """B57: proxies send an absolute URL; only path and query count, and its host is never contacted."""
    for host in (f"127.0.0.1:{mirror.port}", "evil.example", "169.254.169.254", "user:pw@evil.example"):
        status, _, body = await ask(mirror, f"http://{host}{TAG}")
        assert status in (200, 400)
        assert status == 400 or body == image.manifest
    assert upstream.count() <= 1


@pytest.mark.parametrize("method", ["GET", "OPTIONS", "CONNECT", "POST"])
async def test_other_targets_are_errors(mirror: InProcessMirror, upstream: FakeRegistry, method: str) -> None:
    """B57: a target outside the API is an error, and no connection is opened."""
    for target in ("*", "evil.example:443", "/", "/favicon.ico", "/v1/_ping", "/metrics/x", "/.env"):
        status, _, _ = await ask(mirror, target, method=method)

        assert 200 <= status < 500, target
    assert upstream.connections == 0


async def test_random_requests_never_break_the_mirror(
    mirror: InProcessMirror, upstream: FakeRegistry, image: Image
) -> None:
    """B52, B57: two hundred made-up targets and headers: no 5xx, and it serves afterwards."""
    chance = random.Random(7)
    pieces = ["v2", "team", "app", "manifests", "blobs", "tags", "list", "1", DIGEST, "..", "", "%2F", "%00"]
    pieces += ["%", "%ff", "?n=", "&ns=", "#", ":", "@", "registry.test", "uploads", "referrers", "_catalog"]
    names = ["Range", "If-Range", "If-None-Match", "Accept", "Host", "Expect", "X-Request-Id", "Cookie"]
    values = ["bytes=0-", "bytes=" + "9" * 30 + "-", '"', "*", "a, b", "%", "\xff", "", "x" * 5000, "W/"]

    async def one() -> None:
        target = "/" + "/".join(chance.choices(pieces, k=chance.randrange(1, 9)))
        lines = [f"{chance.choice(names)}: {chance.choice(values)}" for _ in range(chance.randrange(3))]
        status, _, _ = await ask(mirror, target, *lines, method=chance.choice(["GET", "HEAD", "PUT"]))
        assert 200 <= status < 500, (target, lines)

    for _ in range(20):
        await asyncio.gather(*(one() for _ in range(10)))
    assert (await mirror.get(TAG)).body == image.manifest


async def test_nothing_of_a_request_becomes_a_header(
    mirror: InProcessMirror, upstream: FakeRegistry, image: Image
) -> None:
    """Header injection: input of a client is repeated in JSON strings only."""
    evil = "%0d%0aX-Evil:%20yes"
    for target in (
        f"/v2/team/app/tags/list?n=1&last={evil}",
        f"/v2/team/app/tags/list?n=1&ns=registry.test{evil}",
        f"/v2/team{evil}/app/manifests/1",
        f"/v2/team/app/manifests/1?ns={evil}",
        f"/registry.test{evil}/v2/",
        f"{TAG}?ns=registry.test&x={evil}",
        f"/registry.test{TAG}?ns={evil}",
    ):
        _, head, _ = await ask(mirror, target)
        assert "X-Evil" not in head.replace("%0D%0AX-Evil", ""), target


async def test_a_request_id_is_kept_short(mirror: InProcessMirror, image: Image) -> None:
    """A client's id is a help for those who read logs, and no place for more."""
    await mirror.get(TAG, {"X-Request-Id": "x" * 5000})

    assert mirror.events.of(RequestServed)[-1].request_id == "x" * 64


# --- documents and headers of upstreams ---


@pytest.mark.parametrize(
    "media_type",
    [
        "x/y\r\nX-Evil: yes",
        "a/\ud800",
        "ä/ö",
        "no slash",
        "x/" + "y" * 5000,
        "",
        5,
        None,
        ["x"],
        "/",
        "a/b;c=d",
    ],
)
async def test_a_documents_media_type_is_not_trusted_as_a_header(
    mirror: InProcessMirror, upstream: FakeRegistry, media_type: Any
) -> None:
    """B11, B10: a manifest with a media type of its own cannot inject headers or break the response."""
    document = {"schemaVersion": 2, "mediaType": media_type, "manifests": []}
    body = json.dumps(document).encode()
    upstream.add_manifest("team/app", body, "application/json", "evil")

    for method in ("GET", "HEAD", "GET"):
        response = await mirror.request(method, "/v2/team/app/manifests/evil")
        assert response.status == 200
        assert response.headers["Content-Type"] == INDEX
        assert "X-Evil" not in response.headers


@pytest.mark.parametrize("declared", ["text/\xe9", "a/b c", "x" * 3000, "application/json, text/html"])
async def test_an_upstreams_content_type_is_not_trusted_either(
    mirror: InProcessMirror, upstream: FakeRegistry, image: Image, declared: str
) -> None:
    """B51: a malformed media type is replaced by the one of the document."""
    upstream.fault(SetHeaders({"Content-Type": declared}), kind="manifest", times=None)

    for method in ("HEAD", "GET"):
        assert (await mirror.request(method, TAG)).headers["Content-Type"] == MANIFEST


@pytest.mark.parametrize(
    "document",
    [
        {"layers": [{"digest": DIGEST, "size": 10**30}]},
        {"layers": [{"digest": DIGEST, "size": -1}, {"digest": DIGEST, "size": "x"}]},
        {"layers": "text", "config": 5, "subject": [], "manifests": {"a": 1}},
        {"layers": [{"digest": DIGEST, "size": 1}] * 5000},
        {"config": {"digest": DIGEST, "size": 1, "urls": "x"}, "annotations": [1]},
        {"subject": {"digest": DIGEST}, "artifactType": 5},
        {"a": {"b": [[[[[[]]]]]]}, "\ud800": "\ud800"},
    ],
)
async def test_odd_manifests_are_passed_on_byte_for_byte(
    mirror: InProcessMirror, start_mirror: StartMirror, upstream: FakeRegistry, document: Any
) -> None:
    """B1, B10: an unknown document is passed on, and breaks nothing."""
    body = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, **document}).encode()
    digest = upstream.add_manifest("team/app", body, MANIFEST, "odd")

    assert (await mirror.get("/v2/team/app/manifests/odd")).body == body
    await upstream.stop()
    later = await start_mirror()
    assert (await later.get(f"/v2/team/app/manifests/{digest}")).body == body
    assert (await later.get(f"/v2/team/app/referrers/{DIGEST}")).status in (200, 502)


@pytest.mark.parametrize(
    "body",
    [
        b"<!DOCTYPE html>",
        b"",
        b"[]",
        b'{"errors":[{"code":"DENIED"}]}',
        b'{"ok": true}',
        b"\x00" * 100,
        b"[" * 50_000,
        b"x" * 9_000_000,
    ],
    ids=["html", "empty", "list", "error", "status", "zeros", "nested", "huge"],
)
async def test_a_body_that_is_no_manifest_is_not_stored(
    mirror: InProcessMirror, upstream: FakeRegistry, body: Any
) -> None:
    """B10: a 200 with something else is the upstream's failure, and the next pull works."""
    fault = upstream.fault(
        Status(200, {"Content-Type": MANIFEST}, body), kind="manifest", method="GET", times=None
    )
    image = upstream.add_image("team/app", "1")

    response = await mirror.get(TAG)

    assert (response.status, response.code) == (502, "UNAVAILABLE")
    fault.remove()
    assert (await mirror.get(TAG)).body == image.manifest


async def test_a_wrong_digest_header_is_not_trusted(
    mirror: InProcessMirror, upstream: FakeRegistry, image: Image
) -> None:
    """B4: our own hash of the body counts."""
    for lie in (DIGEST, "sha256:x", "", "x\xe9"):
        upstream.fault(SetHeaders({"Docker-Content-Digest": lie}), kind="manifest", method="GET", times=1)
        upstream.add_image("team/app", f"tag{len(lie)}")
        response = await mirror.get(f"/v2/team/app/manifests/tag{len(lie)}")
        assert response.headers["Docker-Content-Digest"] == image.digest
