"""The storage behind the fake registry serves signed URLs, and those who leave them alone."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import aiohttp
import pytest
from yarl import URL

from tests.fake_registry import FakeRegistry, FakeStorage, Truncate, random_bytes

DATA = random_bytes(100_000)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def upstream() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as registry:
        yield registry


@pytest.fixture
async def storage(upstream: FakeRegistry) -> AsyncIterator[FakeStorage]:
    async with FakeStorage(upstream) as server:
        yield server


@pytest.fixture
def blob(upstream: FakeRegistry) -> str:
    return f"{upstream.url}/v2/a/blobs/{upstream.add_blob('a', DATA)}"


async def status_of(sending: AbstractAsyncContextManager[aiohttp.ClientResponse]) -> int:
    async with sending as response:
        await response.read()
        return response.status


async def location(http: aiohttp.ClientSession, blob: str) -> URL:
    async with http.get(blob, allow_redirects=False) as response:
        assert response.status == 307
        return URL(response.headers["Location"], encoded=True)


async def test_a_blob_is_redirected_and_served_to_an_unchanged_url(
    http: aiohttp.ClientSession, storage: FakeStorage, blob: str
) -> None:
    signed = await location(http, blob)
    for part in ("%2F", "%2f", "+", "|", "%7C", "~", "%7E", "%20", "!*'()", "&flag&"):
        assert part in str(signed)
    async with http.get(signed) as response:
        assert (response.status, await response.read()) == (200, DATA)
    (request,) = storage.requests
    assert (request.kind, request.reference, request.sent_bytes) == (
        "storage",
        blob.rpartition("/")[2],
        100_000,
    )
    assert not storage.received_credentials


async def test_a_requoted_url_is_rejected(
    http: aiohttp.ClientSession, storage: FakeStorage, blob: str
) -> None:
    signed = await location(http, blob)
    async with http.get(URL(str(signed))) as response:
        assert response.status == 403
        assert b"SignatureDoesNotMatch" in await response.read()


async def test_ranges_are_served(http: aiohttp.ClientSession, storage: FakeStorage, blob: str) -> None:
    async with http.get(await location(http, blob), headers={"Range": "bytes=10-19"}) as response:
        assert (response.status, await response.read()) == (206, DATA[10:20])


async def test_a_signed_url_is_for_get_only(
    http: aiohttp.ClientSession, storage: FakeStorage, blob: str
) -> None:
    async with http.head(await location(http, blob)) as response:
        assert response.status == 403


async def test_credentials_are_rejected_and_recorded(
    http: aiohttp.ClientSession, storage: FakeStorage, blob: str
) -> None:
    signed = await location(http, blob)
    async with http.get(signed, headers={"Authorization": "Bearer x"}) as response:
        assert response.status == 400
    assert storage.received_credentials


async def test_signed_urls_expire(http: aiohttp.ClientSession, storage: FakeStorage, blob: str) -> None:
    storage.expire_after(1)
    signed = await location(http, blob)
    assert await status_of(http.get(signed)) == 200
    assert await status_of(http.get(signed)) == 403
    storage.expire_after(None)
    fresh = await location(http, blob)
    assert fresh != signed
    assert await status_of(http.get(fresh)) == 200
    storage.expire()
    assert await status_of(http.get(fresh)) == 403


async def test_storage_has_faults_of_its_own(
    http: aiohttp.ClientSession, storage: FakeStorage, upstream: FakeRegistry, blob: str
) -> None:
    storage.fault(Truncate(after=5))
    with pytest.raises(aiohttp.ClientPayloadError):
        await status_of(http.get(await location(http, blob)))
    assert upstream.sent_bytes() == 0
    assert storage.sent_bytes() == 5


async def test_the_registry_serves_its_blobs_again_without_storage(
    http: aiohttp.ClientSession, upstream: FakeRegistry, blob: str
) -> None:
    async with FakeStorage(upstream):
        await location(http, blob)
    async with http.get(blob, allow_redirects=False) as response:
        assert await response.read() == DATA


async def test_a_missing_blob_is_not_redirected(
    http: aiohttp.ClientSession, storage: FakeStorage, upstream: FakeRegistry, blob: str
) -> None:
    async with http.get(f"{blob[:-1]}x", allow_redirects=False) as response:
        assert response.status == 404
