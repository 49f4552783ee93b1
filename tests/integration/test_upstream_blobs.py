"""Blobs of an upstream: whole, in part, cut, and through redirects."""

from typing import Any

import pytest

from regmirror.errors import UpstreamContentInvalid, UpstreamFailed, UpstreamNotFound, UpstreamUnreachable
from regmirror.oci.names import Digest
from regmirror.telemetry.events import BytesFetched
from tests.fake_registry import (
    Chunked,
    FakeStorage,
    GzipEncoded,
    Html,
    IgnoreRange,
    Redirect,
    RedirectLoop,
    Reset,
    SetHeaders,
    Status,
    Truncate,
    WrongContentRange,
    random_bytes,
)
from tests.integration.asking import ALPINE, NOTHING, asking

LAYER = random_bytes(300_000, seed=1)


@pytest.fixture
async def client(upstream: Any) -> Any:
    async with asking(upstream.url) as client:
        yield client


@pytest.fixture
def layer(upstream: Any) -> Any:
    return Digest(upstream.add_blob("library/alpine", LAYER))


# --- blobs ---


async def test_a_blob_arrives_whole(client: Any, upstream: Any, layer: Any) -> None:
    """B27: one request, no ping, no HEAD before it."""
    async with client.open_blob(ALPINE, layer) as body:
        assert body.start == 0
        assert body.size == len(LAYER)
        received = b""
        while chunk := await body.read():
            received += chunk
        assert await body.read() == b""
    assert received == LAYER
    assert len(upstream.requests) == 1
    assert "Range" not in upstream.requests[0].headers


async def test_an_empty_blob_arrives_whole(client: Any, upstream: Any) -> None:
    empty = upstream.add_blob("library/alpine", b"")
    assert await client.fetch(empty) == b""
    assert await client.head_blob(ALPINE, Digest(empty)) == 0
    assert await client.blob_size(ALPINE, Digest(empty)) == 0


async def test_a_blob_is_continued_by_range(client: Any, upstream: Any, layer: Any) -> None:
    """B19."""
    async with client.open_blob(ALPINE, layer, 100_000) as body:
        assert (body.start, body.size) == (100_000, len(LAYER))
    assert await client.fetch(layer, 100_000) == LAYER[100_000:]
    assert upstream.requests[0].headers["Range"] == "bytes=100000-"


async def test_an_upstream_that_ignores_ranges_starts_at_the_beginning(
    client: Any, upstream: Any, layer: Any
) -> None:
    """B19: never append."""
    upstream.fault(IgnoreRange(), times=None)
    async with client.open_blob(ALPINE, layer, 100_000) as body:
        assert (body.start, body.size) == (0, len(LAYER))


@pytest.mark.parametrize(
    "value",
    [
        None,
        "bytes 0-99/100",
        "bytes 100000-99999/300000",
        "bytes 100000-299999/200000",
        "bytes 100000-299999",
        "items 100000-299999/300000",
        "nonsense",
    ],
)
async def test_another_range_than_asked_for_is_a_failure(
    client: Any, upstream: Any, layer: Any, value: str | None
) -> None:
    """B19: 206 with a wrong Content-Range."""
    upstream.fault(WrongContentRange(value), times=None)
    with pytest.raises(UpstreamFailed) as caught:
        await client.fetch(layer, 100_000)
    assert caught.value.reason == "range"


async def test_a_range_beyond_the_end_is_a_failure(client: Any, layer: Any) -> None:
    """B19: 416."""
    with pytest.raises(UpstreamFailed) as caught:
        await client.fetch(layer, len(LAYER))
    assert caught.value.reason == "range"


async def test_a_part_that_nobody_asked_for_is_a_failure(client: Any, upstream: Any, layer: Any) -> None:
    upstream.fault(Status(206), times=None)
    with pytest.raises(UpstreamFailed):
        await client.fetch(layer)


@pytest.mark.parametrize("action", [Truncate(100_000), Reset(100_000)])
@pytest.mark.parametrize("offset", [0, 50_000])
async def test_a_blob_that_is_cut_never_ends_cleanly(
    client: Any, upstream: Any, layer: Any, action: Any, offset: int
) -> None:
    """B5."""
    upstream.fault(action)
    received = bytearray()
    with pytest.raises(UpstreamFailed) as caught:
        await client.fetch(layer, offset, into=received)
    assert caught.value.reason == "truncated"
    assert received == LAYER[offset : offset + 100_000]
    assert sum(event.count for event in client.told(BytesFetched)) == 100_000


async def test_a_part_that_ends_early_does_not_end_cleanly(client: Any, upstream: Any, layer: Any) -> None:
    """B5: 206 whose range stops short of the blob's end."""
    upstream.fault(WrongContentRange(f"bytes 100000-{len(LAYER) - 1}/{len(LAYER) + 5}"), times=None)
    with pytest.raises(UpstreamFailed) as caught:
        await client.fetch(layer, 100_000)
    assert caught.value.reason == "truncated"


async def test_a_blob_of_unknown_size_arrives_whole(client: Any, upstream: Any, layer: Any) -> None:
    """RFC 9112 §7.1: chunked."""
    upstream.fault(Chunked(), times=None)
    async with client.open_blob(ALPINE, layer) as body:
        assert body.size is None
    assert await client.fetch(layer) == LAYER
    assert await client.head_blob(ALPINE, layer) is None


@pytest.mark.parametrize("action", [Html(), GzipEncoded(), SetHeaders({"Content-Type": "text/html"})])
async def test_a_page_or_an_encoded_body_is_no_blob(
    client: Any, upstream: Any, layer: Any, action: Any
) -> None:
    """B10."""
    upstream.fault(action, times=None)
    with pytest.raises(UpstreamContentInvalid):
        await client.fetch(layer)


async def test_a_blob_that_is_left_early_breaks_its_connection_and_nothing_else(
    client: Any, upstream: Any, layer: Any
) -> None:
    """B17: 100 early disconnects leave every slot free."""
    for _ in range(100):
        async with client.open_blob(ALPINE, layer) as body:
            await body.read()
    assert await client.fetch(layer) == LAYER


async def test_connections_are_used_again(client: Any, upstream: Any, layer: Any) -> None:
    for _ in range(5):
        await client.fetch(layer)
        await client.head_blob(ALPINE, layer)
        with pytest.raises(UpstreamNotFound):
            await client.head_blob(ALPINE, NOTHING)
    assert upstream.connections == 1


async def test_a_head_tells_the_size_of_a_blob(client: Any, upstream: Any, layer: Any) -> None:
    assert await client.head_blob(ALPINE, layer) == len(LAYER)
    assert upstream.count("blob", "GET") == 0


@pytest.mark.parametrize("status", [405, 501])
async def test_without_head_the_first_byte_tells_the_size(
    client: Any, upstream: Any, layer: Any, status: int
) -> None:
    upstream.fault(Status(status), method="HEAD", times=None)
    assert await client.head_blob(ALPINE, layer) == len(LAYER)
    assert upstream.find("blob", "GET")[0].headers["Range"] == "bytes=0-0"


async def test_the_size_is_known_from_an_upstream_that_ignores_ranges(
    client: Any, upstream: Any, layer: Any
) -> None:
    upstream.fault(IgnoreRange(), times=None)
    assert await client.blob_size(ALPINE, layer) == len(LAYER)


async def test_a_page_does_not_prove_that_a_blob_exists(client: Any, upstream: Any, layer: Any) -> None:
    """B10, B67: a portal's 200 to a HEAD."""
    upstream.fault(SetHeaders({"Content-Type": "text/html"}), times=None)
    with pytest.raises(UpstreamContentInvalid):
        await client.head_blob(ALPINE, layer)


# --- redirects ---


@pytest.fixture
async def cdn(upstream: Any) -> Any:
    async with FakeStorage(upstream) as cdn:
        yield cdn


async def test_a_signed_url_is_followed_byte_for_byte(client: Any, cdn: Any, layer: Any) -> None:
    """B55: storage refuses an altered URL, and any Authorization."""
    assert await client.fetch(layer) == LAYER
    assert not cdn.received_credentials


async def test_a_range_survives_the_redirect(client: Any, cdn: Any, layer: Any) -> None:
    """B55."""
    assert await client.fetch(layer, 1000) == LAYER[1000:]


async def test_a_head_does_not_follow_into_storage(client: Any, cdn: Any, layer: Any) -> None:
    """B22: the redirect says that it exists; its size is had by GET."""
    assert await client.head_blob(ALPINE, layer) is None
    assert cdn.requests == []
    assert await client.blob_size(ALPINE, layer) == len(LAYER)


async def test_an_expired_signed_url_is_asked_for_again(
    client: Any, upstream: Any, cdn: Any, layer: Any
) -> None:
    """B55: 403 from cdn."""
    cdn.fault(Status(403), times=1)
    assert await client.fetch(layer, 1000) == LAYER[1000:]
    assert upstream.count("blob") == 2


@pytest.mark.parametrize("status", [401, 403, 410])
async def test_a_storage_that_refuses_twice_is_a_failure_and_no_denial(
    client: Any, upstream: Any, cdn: Any, layer: Any, status: int
) -> None:
    """B36: it says nothing about who may pull."""
    cdn.fault(Status(status), times=None)
    with pytest.raises(UpstreamFailed) as caught:
        await client.fetch(layer)
    assert caught.value.reason == "storage"
    assert upstream.count("blob") == 2


async def test_a_storage_that_cannot_be_reached_is_named(client: Any, cdn: Any, layer: Any) -> None:
    """B38, B55."""
    await cdn.stop()
    with pytest.raises(UpstreamUnreachable) as caught:
        await client.fetch(layer)
    assert caught.value.reason == "refused"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_every_redirect_is_followed(client: Any, upstream: Any, layer: Any, status: int) -> None:
    """B55; relative Location."""
    moved = f"/v2/library/alpine/blobs/{layer}?moved"
    upstream.fault(Redirect(moved, status))
    assert await client.fetch(layer) == LAYER


async def test_redirects_without_end_end(client: Any, upstream: Any, layer: Any) -> None:
    """B55: ten hops."""
    upstream.fault(RedirectLoop(), times=None)
    with pytest.raises(UpstreamFailed) as caught:
        await client.fetch(layer)
    assert caught.value.reason == "redirect"
    assert len(upstream.requests) == 11


async def test_a_head_follows_a_redirect_within_the_upstream(client: Any, upstream: Any, layer: Any) -> None:
    """B67: that another place of the upstream is named does not prove that the blob is there."""
    upstream.fault(Redirect("/elsewhere", 302), times=1)
    with pytest.raises(UpstreamNotFound):
        await client.head_blob(ALPINE, layer)


async def test_a_redirect_to_nowhere_is_a_failure(client: Any, upstream: Any, layer: Any) -> None:
    upstream.fault(Redirect(""), times=None)
    with pytest.raises(UpstreamFailed):
        await client.fetch(layer)
    with pytest.raises(UpstreamFailed):
        await client.head_blob(ALPINE, layer)
