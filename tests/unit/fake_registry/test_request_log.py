"""The fake registry records every request, and can be stopped and started."""

import asyncio
import ssl
from collections.abc import AsyncIterator

import aiohttp
import pytest
import trustme
from yarl import URL

from tests.fake_registry import BlackHole, FakeRegistry, random_bytes

LAYER = random_bytes(300_000)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session


@pytest.fixture
async def upstream() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as registry:
        yield registry


# --- memory ---


@pytest.mark.parametrize(
    ("path", "kind", "repository", "reference"),
    [
        ("/v2/", "ping", None, None),
        ("/v2", "ping", None, None),
        ("/v2/_catalog", "catalog", None, None),
        ("/v2/a/b/manifests/1", "manifest", "a/b", "1"),
        ("/v2/a/blobs/sha256%3Aab", "blob", "a", "sha256:ab"),
        ("/v2/blobs/uploads/manifests/latest", "manifest", "blobs/uploads", "latest"),
        ("/v2/a/tags/list/manifests/1", "manifest", "a/tags/list", "1"),
        ("/v2/a/manifests/x/tags/list", "tags", "a/manifests/x", None),
        ("/v2/a/blobs/uploads/123", "upload", "a", None),
        ("/elsewhere", "other", None, None),
    ],
)
async def test_requests_are_classified(
    upstream: FakeRegistry,
    http: aiohttp.ClientSession,
    path: str,
    kind: str,
    repository: str | None,
    reference: str | None,
) -> None:
    async with http.get(URL(f"{upstream.url}{path}?ns=x%2Fy", encoded=True)):
        (request,) = upstream.requests
    assert (request.kind, request.repository, request.reference) == (kind, repository, reference)
    assert (request.path, request.query_string) == (path, "ns=x%2Fy")
    assert request.query["ns"] == "x/y"


async def test_requests_can_be_counted_by_their_properties(
    upstream: FakeRegistry, http: aiohttp.ClientSession
) -> None:
    image = upstream.add_image("a", "1", [LAYER])
    for path in ("manifests/1", "manifests/2", f"blobs/{image.layer_digests[0]}"):
        async with http.get(f"{upstream.url}/v2/a/{path}", headers={"X-Test": "1"}) as response:
            await response.read()
    assert upstream.count() == 3
    assert upstream.count("manifest") == 2
    assert upstream.count("manifest", "HEAD") == 0
    assert upstream.count(repository="a", reference="2") == 1
    assert upstream.count(status=404) == 1
    assert upstream.count(where=lambda request: request.headers["x-test"] == "1") == 3
    assert upstream.sent_bytes("blob") == len(LAYER)
    upstream.clear()
    assert upstream.count() == 0


async def test_connections_are_counted_even_if_nothing_is_asked(
    upstream: FakeRegistry, http: aiohttp.ClientSession
) -> None:
    assert upstream.connections == 0
    _, writer = await asyncio.open_connection("127.0.0.1", upstream.port)
    await upstream.wait_until(lambda: upstream.connections == 1)
    writer.close()
    await writer.wait_closed()
    assert upstream.requests == []


async def test_a_client_that_breaks_off_is_remembered(
    upstream: FakeRegistry, http: aiohttp.ClientSession
) -> None:
    digest = upstream.add_big_blob("a", 50_000_000)
    response = await http.get(f"{upstream.url}/v2/a/blobs/{digest}")
    await response.content.readexactly(1000)
    response.close()
    await upstream.wait_until(lambda: upstream.requests[0].outcome == "aborted")
    (request,) = upstream.requests
    assert request.status == 200
    assert 1000 <= request.sent_bytes < 50_000_000


async def test_waiting_for_requests_ends_when_they_have_come(
    upstream: FakeRegistry, http: aiohttp.ClientSession
) -> None:
    waiting = asyncio.create_task(upstream.wait_for_requests("ping", count=2))
    for _ in range(2):
        async with http.get(f"{upstream.url}/v2/"):
            pass
    assert await waiting == upstream.requests


async def test_waiting_without_success_fails_with_the_requests_that_came(
    upstream: FakeRegistry, http: aiohttp.ClientSession
) -> None:
    async with http.get(f"{upstream.url}/v2/?x=1"):
        pass
    with pytest.raises(AssertionError, match=r"1 x \[kind=blob\].*\n.*<ping: GET /v2/\?x=1 -> 200"):
        await upstream.wait_for_requests("blob", timeout=0.01)


# --- life ---


async def test_a_stopped_registry_rejects_connections_and_restarts_on_its_port(
    upstream: FakeRegistry, http: aiohttp.ClientSession
) -> None:
    url = f"{upstream.url}/v2/"
    async with http.get(url) as response:
        assert response.status == 200
    await upstream.stop()
    with pytest.raises(aiohttp.ClientConnectorError):
        await http.get(url)
    await upstream.start()
    async with http.get(url) as response:
        assert response.status == 200
    assert upstream.count("ping") == 2


async def test_https_with_a_given_certificate() -> None:
    authority = trustme.CA()
    serving, asking = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(serving)
    authority.configure_trust(asking)
    async with (
        FakeRegistry(ssl_context=serving, hostname="localhost") as upstream,
        aiohttp.ClientSession() as http,
    ):
        assert upstream.url.startswith("https://localhost:")
        async with http.get(f"{upstream.url}/v2/", ssl=asking) as response:
            assert response.status == 200
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await http.get(f"{upstream.url}/v2/", ssl=ssl.create_default_context())
        assert upstream.connections == 2


@pytest.mark.parametrize("accepts", [True, False])
async def test_a_black_hole_never_responds(http: aiohttp.ClientSession, accepts: bool) -> None:
    timeout = aiohttp.ClientTimeout(sock_connect=0.1, sock_read=0.1)
    expected = aiohttp.SocketTimeoutError if accepts else aiohttp.ConnectionTimeoutError
    async with BlackHole(accepts=accepts) as hole:
        with pytest.raises(expected):
            await http.get(f"{hole.url}/v2/", timeout=timeout)
