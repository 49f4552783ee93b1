"""Answers that are given again by the bytes of their requests: only ever what the ordinary path gives."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from dataclasses import astuple, replace

import pytest
import trustme

from regmirror.blobs import local
from regmirror.metadata.cache import MetadataCache
from regmirror.mirror.resolver import Resolver
from regmirror.oci.names import Digest, Repository, Tag
from regmirror.telemetry.events import RequestServed
from regmirror.v2 import response_cache as prepared
from regmirror.v2.response_cache import ResponseCache
from tests.fake_registry import Status, random_bytes
from tests.integration.test_incomplete import open_circuit
from tests.mirror_fixture import NAME, run_mirror, wait_until

REPOSITORY = Repository(NAME, "team/app")
TAG = "/v2/team/app/manifests/1"
MAX_AGE = 300
DENIED = {NAME: {"deny": ["team/*"]}}


@pytest.fixture
def image(upstream):
    return upstream.add_image("team/app", "1", [random_bytes(5_000)])


@pytest.fixture
def given(monkeypatch):
    """For each request that was looked up: whether its answer was there."""
    found = []
    find = ResponseCache.find

    def note(self, request, client):
        answer = find(self, request, client)
        found.append(answer is not None)
        return answer

    monkeypatch.setattr(ResponseCache, "find", note)
    return found


class Wire:
    """A connection on which bytes are sent as they are given here."""

    def __init__(self, reader, writer):
        self._reader, self._writer = reader, writer

    def send(self, data):
        self._writer.write(data)

    async def answer(self, *, has_body=True):
        """Status line, headers and body, the date blotted out."""
        async with asyncio.timeout(10):
            head = await self._reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"Content-Length: (\d+)", head) if has_body else None
            body = await self._reader.readexactly(int(length[1])) if length else b""
        return re.sub(rb"Date: [^\r]+", b"Date: now", head) + body

    async def ask(self, request, *, has_body=True):
        self.send(request)
        return await self.answer(has_body=has_body)

    async def end(self):
        """Whatever still comes until the mirror closes."""
        async with asyncio.timeout(10):
            return await self._reader.read()


@asynccontextmanager
async def connect(mirror):
    reader, writer = await asyncio.open_connection("127.0.0.1", mirror.port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
        await writer.wait_closed()


def raw(path=TAG, method="GET", *headers, version="1.1"):
    lines = [f"{method} {path} HTTP/{version}", "Host: mirror", "Accept: */*", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def ping():
    return raw("/v2/")


def kept(mirror):
    return len(mirror.worker.routes.routes.response_cache._entries)


async def warm(mirror, image):
    """Everything in memory, by tag and by digest."""
    for path in (TAG, f"/v2/team/app/manifests/{image.digest}"):
        await mirror.get(path)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("by", ["tag", "digest"])
async def test_the_second_answer_is_the_first_one(mirror, upstream, image, given, method, by):
    await warm(mirror, image)
    path = TAG if by == "tag" else f"/v2/team/app/manifests/{image.digest}"
    mirror.events.all.clear()
    given.clear()
    asked = upstream.count()
    async with connect(mirror) as wire:
        responses = [await wire.ask(raw(path, method), has_body=method == "GET") for _ in range(4)]
    assert given == [False, True, True, True]
    assert len(set(responses)) == 1
    assert responses[0].startswith(b"HTTP/1.1 200 OK\r\n")
    assert responses[0].endswith(b"}" if method == "GET" else b"\r\n\r\n")
    assert upstream.count() == asked

    told = mirror.events.of(RequestServed)
    assert len({event.request_id for event in told}) == len(told) == 4
    assert all(event.first_byte <= event.seconds for event in told)
    same = {astuple(replace(event, request_id="", seconds=0, first_byte=0)) for event in told}
    assert len(same) == 1


async def test_the_answer_has_the_date_of_now(mirror, image, given, monkeypatch):
    await warm(mirror, image)
    async with connect(mirror) as wire:
        await wire.ask(raw())
        monkeypatch.setattr(prepared, "_http_date", lambda second: b"Thu, 01 Jan 2099 00:00:00 GMT")
        wire.send(raw())
        head = await wire._reader.readuntil(b"\r\n\r\n")
    assert b"\r\nDate: Thu, 01 Jan 2099 00:00:00 GMT\r\n" in head
    assert given[-1] is True


async def test_a_pull_is_noted_each_time(mirror, image, given):
    """Else what is pulled most would be evicted first."""
    await warm(mirror, image)
    metadata_cache = mirror.worker._resources.metadata_cache
    async with connect(mirror) as wire:
        for _ in range(2):
            await metadata_cache.flush_pulls()
            await wire.ask(raw())
    assert given[-1] is True
    assert list(metadata_cache._pulled_tags) == [(REPOSITORY, "1")]
    assert list(metadata_cache._pulled_manifests) == [(REPOSITORY, image.digest)]


# --- when it is not given --------------------------------------------------------------------


@asynccontextmanager
async def prepared_once(mirror, image, given, path=TAG):
    """A connection on which the request has just been answered without being parsed."""
    await warm(mirror, image)
    async with connect(mirror) as wire:
        await wire.ask(raw(path))
        await wire.ask(raw(path))
        assert given[-1] is True
        yield wire


async def test_an_aged_tag_is_asked_for(mirror, upstream, image, given):
    async with prepared_once(mirror, image, given) as wire:
        asked = upstream.count("manifest")
        mirror.clock.advance(MAX_AGE + 1)
        assert b"Cache-Status: regmirror; fwd=stale" in await wire.ask(raw())
    assert given[-1] is False
    assert upstream.count("manifest") == asked + 1


async def test_a_moved_tag_is_answered_as_it_is_now(mirror, upstream, image, given):
    async with prepared_once(mirror, image, given) as wire:
        newer = upstream.add_image("team/app", "1", [b"newer"])
        mirror.clock.advance(MAX_AGE + 1)
        await mirror.get(TAG)
        assert newer.digest.encode() in await wire.ask(raw())
        assert newer.digest.encode() in await wire.ask(raw())
    assert given[-2:] == [False, True]


@pytest.mark.parametrize("forget", ["all", "tag"])
async def test_what_was_forgotten_is_looked_for(mirror, image, given, forget):
    """Another process has purged it: see ``upkeep/notice``."""
    async with prepared_once(mirror, image, given) as wire:
        metadata_cache: MetadataCache = mirror.worker._resources.metadata_cache
        if forget == "all":
            metadata_cache.invalidate_all()
        else:
            await metadata_cache.delete_tag(REPOSITORY, Tag("1"))
        assert (await wire.ask(raw())).startswith(b"HTTP/1.1 200 ")
    assert given[-1] is False


async def test_a_new_configuration_decides_anew(mirror, image, given):
    async with prepared_once(mirror, image, given) as wire:
        await mirror.reload(upstreams=DENIED)
        assert (await wire.ask(raw())).startswith(b"HTTP/1.1 403 ")
    assert given[-1] is False


async def test_an_answer_of_the_old_configuration_is_not_kept_for_the_new_one(
    mirror, image, given, monkeypatch
):
    await warm(mirror, image)
    find = Resolver.get_manifest

    async def find_and_reload(self, repository, reference):
        answer = await find(self, repository, reference)
        monkeypatch.undo()
        await mirror.reload(upstreams=DENIED)
        return answer

    monkeypatch.setattr(Resolver, "get_manifest", find_and_reload)
    async with connect(mirror) as wire:
        assert (await wire.ask(raw())).startswith(b"HTTP/1.1 200 ")
        assert kept(mirror) == 0
        assert (await wire.ask(raw())).startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("by", ["tag", "digest"])
async def test_an_incomplete_image_is_refused_while_the_rest_cannot_be_had(
    mirror, upstream, image, given, method, by
):
    """B39."""
    path = TAG if by == "tag" else f"/v2/team/app/manifests/{image.digest}"
    await warm(mirror, image)
    async with connect(mirror) as wire:
        for _ in range(2):
            await wire.ask(raw(path, method), has_body=method == "GET")
        assert given[-1] is True
        await open_circuit(mirror, upstream)
        answer = await wire.ask(raw(path, method), has_body=method == "GET")
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert given[-1] is False


async def test_a_manifest_is_recalled_where_it_is_held_alone(mirror, image):
    await warm(mirror, image)
    metadata_cache = mirror.worker._resources.metadata_cache
    assert metadata_cache.get_cached_manifest(REPOSITORY, Digest(image.digest)) is not None
    assert metadata_cache.get_cached_manifest(Repository(NAME, "other/app"), Digest(image.digest)) is None


# --- what is never kept ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        "Authorization: Basic c2VjcmV0",
        "Cookie: secret=1",
        "X-Request-Id: mine",
        "Range: bytes=0-1",
        "Connection: close",
        "Connection: Upgrade\r\nUpgrade: h2c",
        "Content-Length: 0",
        "Expect: 100-continue",
        'If-None-Match: "other"',
        f"Accept-Language: {'x' * 3000}",
    ],
)
async def test_only_plain_requests_are_kept(mirror, image, header):
    await warm(mirror, image)
    before = kept(mirror)
    async with connect(mirror) as wire:
        assert (await wire.ask(raw(TAG, "GET", header))).startswith(b"HTTP/1.1 200 ")
    assert kept(mirror) == before


async def test_http_1_0_is_not_kept(mirror, image):
    await warm(mirror, image)
    before = kept(mirror)
    async with connect(mirror) as wire:
        await wire.ask(raw(TAG, "GET", "Connection: keep-alive", version="1.0"))
        await wire.ask(raw(version="1.0"))
        assert await wire.end() == b""
    assert kept(mirror) == before


async def test_a_known_digest_is_answered_304_beside_a_kept_answer(mirror, image, given):
    async with prepared_once(mirror, image, given) as wire:
        condition = raw(TAG, "GET", f'If-None-Match: "{image.digest}"')
        assert (await wire.ask(condition, has_body=False)).startswith(b"HTTP/1.1 304 ")
        assert (await wire.ask(raw())).startswith(b"HTTP/1.1 200 ")
    assert given[-2:] == [False, True]


async def test_a_stale_answer_is_not_kept(mirror, upstream, image):
    await warm(mirror, image)
    for digest in (image.config_digest, *image.layer_digests):
        await mirror.get(f"/v2/team/app/blobs/{digest}")
    await mirror.worker._resources.downloads.drain()  # the links are written
    upstream.fault(Status(503), times=None)
    mirror.clock.advance(MAX_AGE + 1)
    before = kept(mirror)
    async with connect(mirror) as wire:
        assert b"detail=stale" in await wire.ask(raw())
    assert kept(mirror) == before


async def test_what_is_kept_is_bounded(mirror, image, monkeypatch):
    monkeypatch.setattr(mirror.worker.routes.routes.response_cache._entries, "_limit", 10_000)
    await warm(mirror, image)
    async with connect(mirror) as wire:
        for number in range(30):
            await wire.ask(raw(TAG, "GET", f"User-Agent: {number}"))
    assert 1 < kept(mirror) < 10


# --- small blobs -----------------------------------------------------------------------------


BLOB = random_bytes(70_000, seed=5)


@pytest.fixture
async def blob(mirror, upstream):
    """The path of a blob that is stored, and may be pulled there."""
    digest = upstream.add_blob("team/app", BLOB)
    path = f"/v2/team/app/blobs/{digest}"
    for _ in range(2):
        await mirror.get(path)
        await wait_until(mirror.stored, "it is stored")
    return path


async def test_a_small_blob_is_the_same_again(mirror, blob, given):
    mirror.events.all.clear()
    async with connect(mirror) as wire:
        responses = [await wire.ask(raw(blob)) for _ in range(3)]
    assert given == [False, True, True]
    assert len(set(responses)) == 1
    assert responses[0].partition(b"\r\n\r\n")[2] == BLOB
    told = mirror.events.of(RequestServed)
    assert len({astuple(replace(event, request_id="", seconds=0, first_byte=0)) for event in told}) == 1
    assert told[0].sent_bytes == len(BLOB)


async def test_a_pull_of_a_small_blob_is_noted_each_time(mirror, blob, given):
    metadata_cache = mirror.worker._resources.metadata_cache
    async with connect(mirror) as wire:
        for _ in range(2):
            await metadata_cache.flush_pulls()
            await wire.ask(raw(blob))
    assert given[-1] is True
    assert list(metadata_cache._pulled_blobs) == [blob.rpartition("/")[2]]


@pytest.mark.parametrize("damage", ["gone", "short", "long", "not in memory", "memory forgotten"])
async def test_a_blob_that_is_not_as_it_was_is_looked_after(mirror, blob, given, monkeypatch, damage):
    """B17: a file of the wrong size is put aside and fetched again."""
    file = mirror.blob_path(blob.rpartition("/")[2])
    async with connect(mirror) as wire:
        await wire.ask(raw(blob))
        if damage == "gone":
            file.unlink()
        elif damage == "not in memory":
            monkeypatch.setattr(local, "read_cached", lambda *_: 0)
        elif damage == "memory forgotten":
            mirror.worker._resources.metadata_cache.invalidate_all()
        else:
            file.write_bytes(BLOB[:-1] if damage == "short" else BLOB + b"x")
        answer = await wire.ask(raw(blob))
    assert given[-1] is False
    assert answer.partition(b"\r\n\r\n")[2] == BLOB


async def test_a_blob_is_held_by_its_file_alone(mirror, blob):
    """What is prepared costs memory for the headers."""
    async with connect(mirror) as wire:
        await wire.ask(raw(blob))
    assert mirror.worker.routes.routes.response_cache._entries._weight < 4_000


# --- how requests arrive ---------------------------------------------------------------------


async def test_requests_in_one_piece_are_all_answered_in_order(mirror, image, given):
    async with prepared_once(mirror, image, given) as wire:
        wire.send(raw() + ping() + raw())
        first, second, third = [await wire.answer() for _ in range(3)]
        assert (first, b"{}") == (third, second[-2:])
        for _ in range(3):
            wire.send(raw())
        assert {await wire.answer() for _ in range(3)} == {first}


async def test_a_request_in_two_pieces_is_one(mirror, image, given):
    async with prepared_once(mirror, image, given) as wire:
        looked = len(given)
        expected = await wire.ask(raw())
        wire.send(raw()[:-2])
        while len(given) < looked + 2:  # noqa: ASYNC110  # nobody tells that it has arrived
            await asyncio.sleep(0.001)
        assert await wire.ask(raw()[-2:]) == expected
        assert await wire.ask(raw()) == expected


async def test_a_body_that_looks_like_a_request_is_none(mirror, image, given):
    """Request smuggling: only the parser knows where a request ends."""
    async with prepared_once(mirror, image, given) as wire:
        looked = len(given)
        wire.send(raw("/v2/", "GET", f"Content-Length: {len(raw())}"))
        assert (await wire.answer()).startswith(b"HTTP/1.1 200 ")
        wire.send(raw())
        wire.send(ping())
        assert (await wire.answer()).endswith(b"{}"), "the body was read over"
        assert not any(given[looked:])


async def test_a_pipelined_request_is_not_answered_out_of_turn(mirror, upstream, image, given):
    async with prepared_once(mirror, image, given) as wire:
        pause = upstream.pause(after=0, kind="manifest")
        upstream.add_image("team/app", "2", [b"two"])
        wire.send(raw("/v2/team/app/manifests/2"))
        await pause.wait_for_arrivals()
        wire.send(raw())
        await asyncio.sleep(0)
        pause.release()
        assert b"fwd=miss" in await wire.answer()
        assert image.digest.encode() in await wire.answer()


async def test_a_request_behind_the_begin_of_another_is_part_of_it(mirror, image, given):
    """Request smuggling again: it is the value of a header here."""
    async with prepared_once(mirror, image, given) as wire:
        wire.send(ping() + b"GET /v2/ HTTP/1.1\r\nHost: mirror\r\nX: ")
        assert (await wire.answer()).endswith(b"{}")
        assert b"400 Bad Request" in await wire.ask(raw())  # for its second Host


async def test_an_answer_is_kept_under_its_own_request(mirror, upstream, image, given, monkeypatch):
    """Although another request arrives before it is given."""
    second = upstream.add_image("team/app", "2", [b"two"])
    other = "/v2/team/app/manifests/2"
    await warm(mirror, image)
    await mirror.get(other)
    find, arrived = Resolver.get_manifest, asyncio.Event()

    async def find_late(self, *args):
        monkeypatch.undo()
        await arrived.wait()
        return await find(self, *args)

    monkeypatch.setattr(Resolver, "get_manifest", find_late)
    async with connect(mirror) as wire:
        wire.send(raw())
        await mirror.wait_for_started(mirror.server.requests_count + 1)
        connection = mirror.server.connections[-1]
        wire.send(raw(other))
        await wait_until(lambda: connection._messages, "the other has arrived")
        arrived.set()
        assert image.digest.encode() in await wire.answer()
        assert second.digest.encode() in await wire.answer()
    async with connect(mirror) as wire:
        for _ in range(2):
            assert image.digest.encode() in await wire.ask(raw())
            assert second.digest.encode() in await wire.ask(raw(other))


async def test_each_answer_begins_the_keep_alive_anew(mirror, image, given):
    async with prepared_once(mirror, image, given) as wire:
        moment = asyncio.get_running_loop().time()
        await wire.ask(raw())
        ends = [item._next_keepalive_close_time for item in mirror.server.connections]
        assert max(ends) >= moment + 150


async def test_over_tls_it_is_the_same(upstream, image, storage, given):
    authority = trustme.CA()
    async with run_mirror(storage, {NAME: upstream}, authority=authority) as mirror:
        await warm(mirror, image)
        responses = [await mirror.get(TAG) for _ in range(3)]
        assert given[-2:] == [True, True]
        assert len({answer.body for answer in responses}) == 1


async def test_a_connection_that_is_closing_is_answered_nothing_more(mirror, image, given):
    """The drain closes idle connections at once, whatever they have been answered."""
    async with prepared_once(mirror, image, given) as wire:
        mirror.server.pre_shutdown()
        assert await wire.end() == b""


async def test_a_client_that_does_not_read_is_given_nothing_more(mirror, blob, given):
    """What waits for it in memory stays one answer."""
    async with connect(mirror) as wire:
        wire._reader._transport.pause_reading()
        transport = None
        while transport is None or transport.get_write_buffer_size() == 0:
            count = mirror.server.requests_count
            wire.send(raw(blob))
            await wait_until(lambda count=count: mirror.server.requests_count > count, "it has arrived")
            transport = mirror.server.open_connections()[-1].wire
        looked = len(given)
        for _ in range(20):
            wire.send(raw(blob))
            await asyncio.sleep(0.001)
        assert transport.get_write_buffer_size() <= 2 * len(BLOB)
        assert len(given) == looked
        wire._writer.transport.abort()
