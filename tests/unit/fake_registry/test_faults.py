"""Each fault of the fake registry happens as configured, and as often as configured."""

import asyncio
import gzip
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import aiohttp
import pytest
import trustme

from tests.fake_registry import (
    Action,
    Chunked,
    Corrupt,
    Delay,
    DropBeforeResponse,
    FakeRegistry,
    GzipEncoded,
    Hold,
    Html,
    IgnoreRange,
    Redirect,
    RedirectLoop,
    Reset,
    SetHeaders,
    Slow,
    Status,
    StripHeaders,
    Truncate,
    WrongContentRange,
    WrongLength,
    random_bytes,
)

DATA = random_bytes(600_000)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session


@pytest.fixture
async def upstream(caplog: pytest.LogCaptureFixture) -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as registry:
        registry.add_blob("a", DATA)
        yield registry
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.fixture
def blob(upstream: FakeRegistry) -> str:
    return f"{upstream.url}/v2/a/blobs/{upstream.add_blob('a', DATA)}"


async def status_of(sending: AbstractAsyncContextManager[aiohttp.ClientResponse]) -> int:
    async with sending as response:
        await response.read()
        return response.status


async def read_until_failure(
    sending: AbstractAsyncContextManager[aiohttp.ClientResponse],
) -> tuple[bytes, Exception | None]:
    """The bytes that came, and the error that ended them, None for a clean end."""
    got = b""
    try:
        async with sending as response:
            async for piece in response.content.iter_any():
                got += piece
    except aiohttp.ClientPayloadError as error:
        return got, error
    return got, None


# --- which requests are hit ---


async def test_a_fault_applies_once_by_default(
    upstream: FakeRegistry, http: aiohttp.ClientSession, blob: str
) -> None:
    fault = upstream.fault(Status(503), kind="blob")
    assert [await status_of(http.head(blob)) for _ in range(3)] == [503, 200, 200]
    assert fault.hits == 1


async def test_skip_and_times_choose_the_hits(
    upstream: FakeRegistry, http: aiohttp.ClientSession, blob: str
) -> None:
    upstream.fault(Status(500), kind="blob", skip=1, times=2)
    assert [await status_of(http.head(blob)) for _ in range(4)] == [200, 500, 500, 200]


async def test_a_lasting_fault_ends_when_it_is_removed(
    upstream: FakeRegistry, http: aiohttp.ClientSession, blob: str
) -> None:
    fault = upstream.fault(Status(500), times=None)
    assert [await status_of(http.head(blob)) for _ in range(3)] == [500, 500, 500]
    fault.remove()
    assert await status_of(http.head(blob)) == 200


async def test_only_matching_requests_are_hit(
    upstream: FakeRegistry, http: aiohttp.ClientSession, blob: str
) -> None:
    upstream.fault(Status(500), kind="blob", method="GET", repository="a", times=None)
    upstream.fault(Status(501), where=lambda request: "X-Odd" in request.headers, times=None)
    assert await status_of(http.get(blob)) == 500
    assert await status_of(http.head(blob)) == 200
    assert await status_of(http.get(f"{upstream.url}/v2/")) == 200
    assert await status_of(http.get(f"{upstream.url}/v2/", headers={"X-Odd": "1"})) == 501


async def test_faults_of_the_body_wait_for_a_body(http: aiohttp.ClientSession) -> None:
    async with FakeRegistry(auth="bearer") as upstream:
        digest = upstream.add_blob("a", DATA)
        url = f"{upstream.url}/v2/a/blobs/{digest}"
        allowed = {"Authorization": f"Bearer {upstream.issue_token('repository:a:pull')}"}
        fault = upstream.fault(Truncate(after=10), kind="blob")
        assert await status_of(http.get(url)) == 401
        assert await status_of(http.head(url, headers=allowed)) == 200
        assert fault.hits == 0
        got, error = await read_until_failure(http.get(url, headers=allowed))
        assert (got, type(error)) == (DATA[:10], aiohttp.ClientPayloadError)


async def test_cleared_faults_strike_no_more(
    upstream: FakeRegistry, http: aiohttp.ClientSession, blob: str
) -> None:
    upstream.fault(Status(500), times=None)
    upstream.clear_faults()
    assert await status_of(http.head(blob)) == 200


async def test_several_actions_strike_together(
    upstream: FakeRegistry, http: aiohttp.ClientSession, blob: str
) -> None:
    upstream.fault(SetHeaders({"Set-Cookie": "a=b"}), Chunked(), kind="blob")
    async with http.get(blob) as response:
        assert response.headers["Set-Cookie"] == "a=b"
        assert "Content-Length" not in response.headers
        assert await response.read() == DATA


# --- before the response ---


async def test_a_status_replaces_the_response(
    upstream: FakeRegistry, http: aiohttp.ClientSession, blob: str
) -> None:
    upstream.fault(Status(429, {"Retry-After": "7"}, b"Too Many Requests"))
    async with http.get(blob) as response:
        assert response.status == 429
        assert response.headers["Retry-After"] == "7"
        assert await response.read() == b"Too Many Requests"


async def test_a_captive_portal(upstream: FakeRegistry, http: aiohttp.ClientSession, blob: str) -> None:
    upstream.fault(Html())
    async with http.get(blob) as response:
        assert response.status == 200
        assert response.content_type == "text/html"
        assert b"Sign in" in await response.read()


async def test_delayed_requests_wait_for_the_release_and_get_the_content_of_that_moment(
    upstream: FakeRegistry, http: aiohttp.ClientSession
) -> None:
    upstream.add_image("a", "1", [b"old"])
    hold = upstream.hold(kind="manifest")
    asking = [asyncio.create_task(http.get(f"{upstream.url}/v2/a/manifests/1")) for _ in range(2)]
    await hold.wait_for_arrivals(2)
    assert hold.waiting == 2
    assert not any(task.done() for task in asking)
    new = upstream.add_image("a", "1", [b"new"])
    hold.release()
    for response in await asyncio.gather(*asking):
        assert response.headers["Docker-Content-Digest"] == new.digest
    assert await status_of(http.get(f"{upstream.url}/v2/a/manifests/1")) == 200


async def test_a_client_that_leaves_a_hold_is_noticed(
    upstream: FakeRegistry, http: aiohttp.ClientSession, blob: str
) -> None:
    hold = upstream.hold()
    with pytest.raises(TimeoutError):
        await http.get(blob, timeout=aiohttp.ClientTimeout(total=0.05))
    await hold.wait_for_arrivals()
    await hold.wait_until_empty()
    assert [(request.status, request.outcome) for request in upstream.requests] == [(0, "aborted")]


async def test_stopping_ends_delayed_requests(http: aiohttp.ClientSession) -> None:
    async with FakeRegistry() as upstream:
        hold = upstream.hold()
        asking = asyncio.create_task(http.get(f"{upstream.url}/v2/"))
        await hold.wait_for_arrivals()
    with pytest.raises(aiohttp.ClientConnectionError):
        await asking
    assert [request.outcome for request in upstream.requests] == ["aborted"]


async def test_waiting_in_vain_at_a_hold_fails(upstream: FakeRegistry) -> None:
    with pytest.raises(AssertionError, match="1 requests at <Hold 0 waiting>"):
        await Hold().wait_for_arrivals(timeout=0.01)


async def test_a_delay_passes(upstream: FakeRegistry, http: aiohttp.ClientSession, blob: str) -> None:
    upstream.fault(Delay(0.001))
    assert await status_of(http.head(blob)) == 200


@pytest.mark.parametrize(
    ("reset", "error"), [(False, aiohttp.ServerDisconnectedError), (True, aiohttp.ClientOSError)]
)
async def test_dropped_connections(
    upstream: FakeRegistry, http: aiohttp.ClientSession, blob: str, reset: bool, error: type[Exception]
) -> None:
    fault = upstream.fault(DropBeforeResponse(reset=reset), times=None)
    with pytest.raises(error):
        await http.get(blob)
    await fault.wait_for_hits()
    assert [(request.status, request.outcome) for request in upstream.requests] == [(0, "cut")] * fault.hits


# --- headers and status ---


async def test_a_redirect(upstream: FakeRegistry, http: aiohttp.ClientSession, blob: str) -> None:
    upstream.fault(Redirect(lambda request: f"/elsewhere/{request.reference}", 303), kind="blob")
    async with http.get(blob, allow_redirects=False) as response:
        assert response.status == 303
        assert response.headers["Location"].startswith("/elsewhere/sha256:")


async def test_a_redirect_loop_goes_on_for_ever(
    upstream: FakeRegistry, http: aiohttp.ClientSession, blob: str
) -> None:
    upstream.fault(RedirectLoop(), kind="blob", times=None)
    with pytest.raises(aiohttp.TooManyRedirects):
        await http.get(blob, max_redirects=10)
    assert upstream.requests[-1].query["hop"] == "9"


async def test_stripped_headers_are_not_sent(
    upstream: FakeRegistry, http: aiohttp.ClientSession, blob: str
) -> None:
    names = ["Docker-Content-Digest", "Content-Type", "Server", "Date"]
    upstream.fault(StripHeaders(names), kind="blob")
    async with http.get(blob) as response:
        assert [name for name in names if name in response.headers] == []
        assert await response.read() == DATA


async def test_an_ignored_range_gets_everything(
    upstream: FakeRegistry, http: aiohttp.ClientSession, blob: str
) -> None:
    upstream.fault(IgnoreRange(), kind="blob")
    async with http.get(blob, headers={"Range": "bytes=100-"}) as response:
        assert response.status == 200
        assert "Content-Range" not in response.headers
        assert await response.read() == DATA


async def test_a_wrong_content_range_lies_about_the_place(
    upstream: FakeRegistry, http: aiohttp.ClientSession, blob: str
) -> None:
    upstream.fault(WrongContentRange(), kind="blob")
    async with http.get(blob, headers={"Range": "bytes=100-199"}) as response:
        assert response.status == 206
        assert response.headers["Content-Range"] == "bytes 101-200/600001"
        assert await response.read() == DATA[100:200]


# --- bodies ---


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("action", [Truncate(after=250_000), Reset(after=250_000)])
async def test_a_cut_body_ends_at_the_configured_offset(secure: bool, action: Action) -> None:
    authority = trustme.CA()
    serving, asking = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(serving)
    authority.configure_trust(asking)
    async with (
        FakeRegistry(ssl_context=serving if secure else None) as upstream,
        aiohttp.ClientSession() as http,
    ):
        digest = upstream.add_blob("a", DATA)
        upstream.fault(action, kind="blob")
        sending = http.get(f"{upstream.url}/v2/a/blobs/{digest}", ssl=asking)
        got, error = await read_until_failure(sending)
        assert (got, type(error)) == (DATA[:250_000], aiohttp.ClientPayloadError)
        assert [(request.sent_bytes, request.outcome) for request in upstream.requests] == [(250_000, "cut")]


async def test_a_reset_is_an_rst_and_a_truncation_a_fin(upstream: FakeRegistry) -> None:
    """Checked at the client's socket, which shows the difference."""
    digest = upstream.add_blob("a", DATA)
    ends = []
    for action in (Reset(after=1000), Truncate(after=1000)):
        upstream.fault(action, kind="blob")
        reader, writer = await asyncio.open_connection("127.0.0.1", upstream.port)
        writer.write(f"GET /v2/a/blobs/{digest} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        try:
            response = await reader.read()
            ends.append(response.partition(b"\r\n\r\n")[2])
        except ConnectionResetError:
            ends.append(b"reset")
        writer.close()
    assert ends == [b"reset", DATA[:1000]]


async def test_a_corrupt_body_differs_in_one_byte(
    upstream: FakeRegistry, http: aiohttp.ClientSession, blob: str
) -> None:
    upstream.fault(Corrupt(at=-1), kind="blob")
    async with http.get(blob) as response:
        body = await response.read()
    assert len(body) == len(DATA)
    assert [at for at in range(len(DATA)) if body[at] != DATA[at]] == [len(DATA) - 1]


async def test_corruption_stays_where_it_is_in_a_range(
    upstream: FakeRegistry, http: aiohttp.ClientSession, blob: str
) -> None:
    upstream.fault(Corrupt(at=150), kind="blob", times=None)
    async with http.get(blob, headers={"Range": "bytes=100-199"}) as response:
        body = await response.read()
    assert body[:50] + body[51:] == DATA[100:150] + DATA[151:200]
    assert body[50] != DATA[150]


async def test_a_length_too_small_ends_cleanly_and_too_early(
    upstream: FakeRegistry, http: aiohttp.ClientSession, blob: str
) -> None:
    upstream.fault(WrongLength(by=-100), kind="blob")
    got, error = await read_until_failure(http.get(blob))
    assert (got, error) == (DATA[:-100], None)


async def test_a_length_too_large_ends_by_fin(
    upstream: FakeRegistry, http: aiohttp.ClientSession, blob: str
) -> None:
    upstream.fault(WrongLength(by=100), kind="blob")
    got, error = await read_until_failure(http.get(blob))
    assert (got, type(error)) == (DATA, aiohttp.ClientPayloadError)


async def test_an_unasked_gzip_encoding(
    upstream: FakeRegistry, http: aiohttp.ClientSession, blob: str
) -> None:
    upstream.fault(GzipEncoded(), kind="blob")
    async with http.get(blob) as response:
        assert response.headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(await response.read()) == DATA


async def test_a_truncated_chunked_body_has_no_end(
    upstream: FakeRegistry, http: aiohttp.ClientSession, blob: str
) -> None:
    upstream.fault(Chunked(), Truncate(after=1000), kind="blob")
    got, error = await read_until_failure(http.get(blob))
    assert (got, type(error)) == (DATA[:1000], aiohttp.ClientPayloadError)


async def test_a_slow_body_arrives_completely(
    upstream: FakeRegistry, http: aiohttp.ClientSession, blob: str
) -> None:
    upstream.fault(Slow(bytes_per_second=20_000_000), kind="blob")
    async with http.get(blob) as response:
        assert await response.read() == DATA


async def test_a_paused_body_stops_exactly_there_until_released(
    upstream: FakeRegistry, http: aiohttp.ClientSession, blob: str
) -> None:
    start, middle = upstream.pause(after=0), upstream.pause(after=300_000)
    response = await http.get(blob)
    await start.wait_for_arrivals()
    assert upstream.sent_bytes("blob") == 0
    start.release()
    await middle.wait_for_arrivals()
    assert upstream.sent_bytes("blob") == 300_000
    assert await response.content.readexactly(300_000) == DATA[:300_000]
    assert upstream.requests[0].outcome == "waiting"
    middle.release()
    assert await response.read() == DATA[300_000:]
    await upstream.wait_until(lambda: upstream.requests[0].outcome == "complete")
