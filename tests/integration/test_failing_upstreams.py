"""Responses to clients while an upstream is down, slow, rate-limited or offline."""

import asyncio
import json
import re
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from regmirror.telemetry.events import DownloadEnded, RequestServed, UpstreamRequestEnded
from tests.conftest import StartMirror
from tests.fake_registry import (
    Action,
    BlackHole,
    DropBeforeResponse,
    FakeRegistry,
    Html,
    Image,
    Index,
    RateLimit,
    Status,
    Truncate,
    random_bytes,
)
from tests.integration.pulling import pull_image
from tests.mirror_fixture import InProcessMirror, Response

TAG = "/v2/team/app/manifests/1"
MAX_AGE = 300  # seconds: the default of freshness.tag_max_age
STALE_IF_ERROR = 30 * 86400
NOTHING = "sha256:" + "0" * 64
CONTENT_HEADERS = ("Docker-Content-Digest", "ETag", "Cache-Status", "Accept-Ranges", "Content-Range")
FAILURES = {
    "500": Status(500),
    "502": Status(502, {"Content-Type": "text/html"}, b"<h1>Bad Gateway</h1>"),
    "503": Status(503, {"Retry-After": "5"}),
    "429": Status(429, {"Retry-After": "30"}),
    "reset": DropBeforeResponse(reset=True),
    "closed": DropBeforeResponse(),
    "captive portal": Html(),
}


@pytest.fixture
def image(upstream: FakeRegistry) -> Image:
    return upstream.add_image("team/app", "1", [random_bytes(200_000)])


def only_an_error(response: Response, status: int, code: str | None = None) -> dict[str, Any]:
    """Check an error response: OCI JSON, and no header of content or of the upstream (B9)."""
    assert response.status == status
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Docker-Distribution-Api-Version"] == "registry/2.0"
    assert not {*CONTENT_HEADERS, "WWW-Authenticate", "Set-Cookie"} & set(response.headers)
    errors = response.json()["errors"]
    assert [set(error) for error in errors] == [{"code", "message", "detail"}]
    assert re.fullmatch("[A-Z_]+", errors[0]["code"])
    if code:
        assert errors[0]["code"] == code
    error: dict[str, Any] = errors[0]
    return error


# --- stale responses ---


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_cached_tag_outlives_its_upstreams_failure(
    mirror: InProcessMirror, upstream: FakeRegistry, image: Image, failure: str
) -> None:
    """B33: 200 from the store, marked by headers, counted as stale, until the upstream is back."""
    await pull_image(mirror, image)
    mirror.clock.advance(MAX_AGE + 1)
    fault = upstream.fault(FAILURES[failure], kind="manifest", times=None)

    for method, body in (("HEAD", b""), ("GET", image.manifest)):
        response = await mirror.request(method, TAG)

        assert (response.status, response.body) == (200, body)
        assert response.headers["Docker-Content-Digest"] == image.digest
        assert response.headers["Cache-Status"] == "regmirror; hit; detail=stale"
        assert re.fullmatch(r'299 - "registry\.test[^"]*"', response.headers["Warning"])
        assert mirror.events.of(RequestServed)[-1].result == "stale"

    fault.remove()
    mirror.clock.advance(31)  # a 429 is obeyed
    recovered = await mirror.get(TAG)
    assert recovered.headers["Cache-Status"] == "regmirror; fwd=stale; fwd-status=200"
    assert "Warning" not in recovered.headers


async def test_a_cached_tag_outlives_its_upstream(
    mirror: InProcessMirror, upstream: FakeRegistry, image: Image
) -> None:
    """B33: when no process listens, too."""
    await pull_image(mirror, image)
    mirror.clock.advance(MAX_AGE + 1)
    await upstream.stop()

    response = await mirror.get(TAG)

    assert response.body == image.manifest
    assert response.headers["Warning"].startswith('299 - "registry.test: ')
    metrics = (await mirror.get("/metrics")).body.decode()
    name = 'regmirror_requests_total{kind="manifest",result="stale",upstream="registry.test"}'
    assert f"{name} 1.0" in metrics
    assert 'regmirror_upstream_up{upstream="registry.test"} 0.0' in metrics


async def test_no_client_waits_for_a_slow_upstream_when_a_stale_response_is_available(
    start_mirror: StartMirror, upstream: FakeRegistry, image: Image
) -> None:
    """B33: the revalidation continues in the background, and the next pull uses its result."""
    mirror = await start_mirror(stale_deadline=0.05)
    await pull_image(mirror, image)
    mirror.clock.advance(MAX_AGE + 1)
    gate = upstream.hold("manifest")

    responses = [await mirror.get(TAG), await mirror.get(TAG)]

    assert {response.headers["Cache-Status"] for response in responses} == {"regmirror; hit; detail=stale"}
    assert "slow" in responses[0].headers["Warning"]
    assert upstream.count("manifest", "HEAD") == 1, "both waited for one question"
    gate.release()
    await mirror.events.wait_until(lambda: len(mirror.events.of(UpstreamRequestEnded)) == 4)
    assert (await mirror.get(TAG)).headers["Cache-Status"] in (
        "regmirror; hit",
        "regmirror; fwd=stale; fwd-status=200",
    )
    assert upstream.count("manifest", "HEAD") == 1


async def test_stale_responses_end_after_stale_if_error(
    mirror: InProcessMirror, upstream: FakeRegistry, image: Image
) -> None:
    """B33: after stale-if-error, the upstream's failure is reported."""
    await pull_image(mirror, image)
    await upstream.stop()
    mirror.clock.advance(MAX_AGE + STALE_IF_ERROR - 10)
    assert (await mirror.get(TAG)).status == 200
    mirror.clock.advance(20)

    only_an_error(await mirror.get(TAG), 502)
    assert (await mirror.get(f"/v2/team/app/manifests/{image.digest}")).status == 200, (
        "digests are true for ever"
    )


# --- errors ---


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_content_that_an_upstream_denies_is_not_found(
    mirror: InProcessMirror, upstream: FakeRegistry, image: Image, status: int
) -> None:
    """B34, B9: 404, so that clients try their next host, and never the upstream's own challenge."""
    challenge = {"WWW-Authenticate": 'Basic realm="upstream"', "Set-Cookie": "a=b"}
    upstream.fault(Status(status, challenge, b"<html>"), times=None)

    for path, code in {
        TAG: "MANIFEST_UNKNOWN",
        f"/v2/team/app/manifests/{NOTHING}": "MANIFEST_UNKNOWN",
        f"/v2/team/app/blobs/{NOTHING}": "BLOB_UNKNOWN",
        "/v2/team/app/tags/list": "NAME_UNKNOWN",
    }.items():
        head = await mirror.head(path.replace("app", "head"))
        response = await mirror.get(path)

        only_an_error(response, 404, code)
        assert (head.status, head.body) == (404, b"")
        assert set(head.headers) == set(response.headers)


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (Status(429, {"Retry-After": "30"}), 429, "TOOMANYREQUESTS"),
        (Status(429), 429, "TOOMANYREQUESTS"),
        (Status(500), 502, "UNAVAILABLE"),
        (Status(503), 502, "UNAVAILABLE"),
        (Status(418), 502, "UNAVAILABLE"),
        (Html(), 502, "UNAVAILABLE"),
        (DropBeforeResponse(reset=True), 502, "UNAVAILABLE"),
    ],
)
async def test_a_failure_of_the_upstream_is_reported(
    mirror: InProcessMirror, upstream: FakeRegistry, image: Image, fault: Action, status: int, code: str
) -> None:
    """B34, B86: before any header of content, so that clients fall back at once."""
    failing = upstream.fault(fault, times=None)

    for path in (
        TAG,
        f"/v2/team/app/manifests/{NOTHING}",
        f"/v2/team/app/blobs/{NOTHING}",
        "/v2/a/tags/list",
    ):
        response = await mirror.get(path)
        failing.remove()
        await mirror.get("/v2/team/app/manifests/well")  # so that they are no three in a row
        failing = upstream.fault(fault, times=None)

        error = only_an_error(response, status, code)
        assert error["detail"]["upstream"] == "registry.test"
        assert error["detail"]["reason"]
        wanted = {"30", "60"} if status == 429 else {None}
        assert response.headers.get("Retry-After") in wanted


@pytest.mark.parametrize("accepts", [True, False])
async def test_a_black_hole_is_a_gateway_timeout(start_mirror: StartMirror, accepts: bool) -> None:
    """B35, B34: a host that never responds is a 504 within the configured times."""
    async with BlackHole(accepts=accepts) as hole:
        limits = {"connect_timeout": "100ms", "read_timeout": "100ms"}
        mirror = await start_mirror({"registry.test": hole.url}, upstreams={"registry.test": limits})

        for path in ("manifests/1", f"manifests/{NOTHING}", f"blobs/{NOTHING}"):
            error = only_an_error(await mirror.get(f"/v2/team/app/{path}"), 504, "UNAVAILABLE")
            assert error["detail"]["reason"] == ("read" if accepts else "connect")
        error = only_an_error(await mirror.get("/v2/team/app/tags/list"), 503, "UNAVAILABLE")
        assert error["detail"]["reason"] == "circuit-open"


async def test_a_hung_upstream_delays_no_other_request(
    start_mirror: StartMirror, upstream: FakeRegistry, image: Image
) -> None:
    """B35: neither another upstream nor cached content of this one."""
    async with FakeRegistry() as other:
        theirs = other.add_image("org/tool", "1", [b"other"])
        mirror = await start_mirror({"registry.test": upstream, "other.test": other})
        await mirror.get(TAG)
        await mirror.get(f"/v2/team/app/blobs/{image.config_digest}")
        upstream.add_image("team/app", "2", [b"2"])
        gate = upstream.hold()
        hung = [asyncio.create_task(mirror.get("/v2/team/app/manifests/2")) for _ in range(20)]
        hung += [asyncio.create_task(mirror.get(f"/v2/team/x{i}/manifests/1")) for i in range(80)]
        await gate.wait_for_arrivals(10)

        assert (await mirror.get(TAG)).body == image.manifest
        assert (await mirror.get(f"/v2/team/app/blobs/{image.config_digest}")).body == image.config
        assert (await mirror.get("/v2/other.test/org/tool/manifests/1")).body == theirs.manifest
        assert (await mirror.get("/v2/")).status == 200
        assert (await mirror.get("/healthz")).status == 200
        assert not [task for task in hung if task.done()]
        gate.release()
        await asyncio.gather(*hung)


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def certificate(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


async def reason_of(start_mirror: StartMirror, url: str, **limits: Any) -> Any:
    """The error's reason for an upstream at ``url``, in the response and in the logged event."""
    mirror = await start_mirror({"registry.test": url}, upstreams={"registry.test": limits})
    error = only_an_error(await mirror.get(TAG), 502, "UNAVAILABLE")
    assert {event.reason for event in mirror.events.of(UpstreamRequestEnded)} == {error["detail"]["reason"]}
    assert error["message"].startswith("registry.test: ")
    return error["detail"]["reason"]


async def test_each_cause_of_an_unreachable_upstream_has_its_reason(
    start_mirror: StartMirror, upstream: FakeRegistry, certificate: ssl.SSLContext
) -> None:
    """B38: a name that does not resolve, a closed port, no TLS, an unknown authority."""
    closed = FakeRegistry()
    await closed.start()
    await closed.stop()

    assert await reason_of(start_mirror, "http://registry.invalid") == "dns"
    assert await reason_of(start_mirror, closed.url) == "refused"
    assert await reason_of(start_mirror, upstream.url.replace("http:", "https:")) == "tls"
    async with FakeRegistry(ssl_context=certificate) as secure:
        assert await reason_of(start_mirror, secure.url) == "certificate"
        assert secure.count() == 0


async def test_an_authority_can_be_named(
    start_mirror: StartMirror, certificate: ssl.SSLContext, authority: trustme.CA, tmp_path: Path
) -> None:
    """B38: the remedy that the error names."""
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    async with FakeRegistry(ssl_context=certificate) as secure:
        image = secure.add_image("team/app", "1")
        mirror = await start_mirror(
            {"registry.test": secure}, upstreams={"registry.test": {"ca_file": str(file)}}
        )

        assert (await mirror.get(TAG)).body == image.manifest


async def test_an_error_after_the_first_byte_adds_nothing_to_the_body(
    mirror: InProcessMirror, upstream: FakeRegistry, image: Image
) -> None:
    """B9: the connection ends by FIN short of Content-Length; no second response is written into it."""
    layer = image.layers[0]
    assert isinstance(layer, bytes)
    upstream.fault(Truncate(100_000), kind="blob", times=1)
    upstream.fault(Status(404), kind="blob", skip=1, times=None)
    await mirror.get(TAG)

    path = f"/v2/team/app/blobs/{image.layer_digests[0]}"
    received = await mirror.send_raw(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())

    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert b"Content-Length: 200000" in head
    assert layer.startswith(body)
    assert 0 < len(body) < len(layer)
    served = mirror.events.of(RequestServed)[-1]
    assert (served.status, served.error != "") == (200, True)
    assert mirror.stored() == set()


@pytest.mark.parametrize("number", [0, 1])
async def test_a_blob_that_cannot_be_had_fails_before_its_headers(
    mirror: InProcessMirror, upstream: FakeRegistry, image: Image, number: int
) -> None:
    """B86: dockerd and containerd fall back as long as no byte has come."""
    await mirror.get(TAG)
    upstream.fault(Status(500), kind="blob", times=None)

    response = await mirror.get(f"/v2/team/app/blobs/{image.blob_digests[number]}")
    only_an_error(response, 502)
    assert response.status == 502


async def test_a_defect_of_ours_is_an_error_of_the_api(
    mirror: InProcessMirror,
    upstream: FakeRegistry,
    image: Image,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """B9: an unexpected error is a 500 in JSON, counted and logged, and the next request works."""

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("on purpose")

    with monkeypatch.context() as broken:
        broken.setattr("regmirror.mirror.resolver.Resolver._is_current", fail)
        broken.setattr("regmirror.mirror.resolver.Resolver._find_fallback", fail)
        error = only_an_error(await mirror.get(TAG), 500, "UNKNOWN")

    assert "on purpose" not in json.dumps(error)
    served = mirror.events.of(RequestServed)[-1]
    assert (served.status, served.result, served.error) == (500, "error", "ZeroDivisionError in the mirror")
    assert "on purpose" in caplog.text
    assert (await mirror.get(TAG)).status == 200


# --- limits, and no network ---


async def test_rate_limits_become_gauges(
    mirror: InProcessMirror, upstream: FakeRegistry, image: Image
) -> None:
    """B31: the rate limit of Docker Hub is in /metrics, and not in our own responses."""
    upstream.rate_limit = RateLimit(limit=100, remaining=76)

    response = await mirror.get(TAG)

    assert not [name for name in response.headers if "ratelimit" in name.lower()]
    metrics = (await mirror.get("/metrics")).body.decode()
    assert 'regmirror_upstream_ratelimit_limit{upstream="registry.test"} 100.0' in metrics
    assert 'regmirror_upstream_ratelimit_remaining{upstream="registry.test"} 75.0' in metrics


async def pull(mirror: InProcessMirror, index: Index) -> Any:
    """Pull an index with everything in it, by tag; the bodies by path."""
    paths = [TAG, "/v2/team/app/tags/list"]
    for image in index.images:
        paths.append(f"/v2/team/app/manifests/{image.digest}")
        paths += [f"/v2/team/app/blobs/{digest}" for digest in image.blob_digests]
    responses = {path: await mirror.get(path) for path in paths}
    assert {response.status for response in responses.values()} == {200}
    return {path: response.body for path, response in responses.items()}


@pytest.fixture
def index(upstream: FakeRegistry) -> Index:
    images = [
        upstream.add_image("team/app", None, [random_bytes(5000, seed)], platform=f"linux/{name}")
        for seed, name in enumerate(["amd64", "arm64"])
    ]
    return upstream.add_index("team/app", "1", images)


@pytest.mark.parametrize("age", [0, 86400])
async def test_every_cached_image_is_served_without_network(
    start_mirror: StartMirror, upstream: FakeRegistry, index: Index, age: int
) -> None:
    """B32: also right after a start, and when the tag is no longer fresh."""
    first = await start_mirror()
    pulled = await pull(first, index)
    await first.events.wait_for(DownloadEnded, 4)
    await upstream.stop()
    first.clock.advance(age)

    second = await start_mirror(clock=first.clock)

    assert await pull(second, index) == pulled


async def test_offline_sends_no_request(
    start_mirror: StartMirror, upstream: FakeRegistry, index: Index
) -> None:
    """B37: no connection of any kind, for any request and content of any age."""
    first = await start_mirror()
    pulled = await pull(first, index)
    await first.events.wait_for(DownloadEnded, 4)
    connections = upstream.connections
    first.clock.advance(10 * STALE_IF_ERROR)

    mirror = await start_mirror(clock=first.clock, freshness={"offline": True})

    assert await pull(mirror, index) == pulled
    for method in ("GET", "HEAD"):
        for missing in (
            "team/app/manifests/2",
            f"team/app/manifests/{NOTHING}",
            f"team/app/blobs/{NOTHING}",
            "team/new/manifests/1",
            f"team/new/blobs/{index.images[0].config_digest}",
            "team/new/tags/list",
        ):
            response = await mirror.request(method, f"/v2/{missing}")
            assert response.status == 404, missing
        assert (await mirror.request(method, TAG)).headers["Cache-Status"] == "regmirror; hit"
    referrers = await mirror.get(f"/v2/team/app/referrers/{index.digest}")
    assert (referrers.status, referrers.json()["manifests"]) == (200, [])
    assert upstream.connections == connections


async def test_offline_with_nothing_stored_makes_no_connection(
    start_mirror: StartMirror, upstream: FakeRegistry, index: Index
) -> None:
    """B37: an offline mirror does not probe its upstreams at the start."""
    mirror = await start_mirror(freshness={"offline": True})

    for path in (TAG, f"/v2/team/app/blobs/{NOTHING}", "/v2/", "/v2/_catalog", "/metrics", "/readyz"):
        await mirror.get(path)
    assert upstream.connections == 0
