"""Responses that are stored under the bytes of their requests."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from aiohttp import HttpVersion10, HttpVersion11, web
from aiohttp.test_utils import make_mocked_request

from regmirror.telemetry.events import Event, RequestServed
from regmirror.v2.request import RequestContext
from regmirror.v2.response_cache import (
    OVERHEAD,
    REQUEST_MAX,
    WEIGHT_MAX,
    Body,
    Replay,
    ResponseCache,
    is_plain,
)

REQUEST = b"GET /v2/ HTTP/1.1\r\n\r\n"


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def cache(events: list[Event]) -> ResponseCache:
    return ResponseCache(events.append)


def respond(status: int = 200) -> web.Response:
    response = web.Response(status=status, headers={"Date": "then", "X-A": "1"})
    response._keep_alive = True
    return response


def replay(cache: ResponseCache, body: Body | None = b"body", retained: int = 0) -> Replay:
    context = RequestContext(make_mocked_request("GET", "/v2/"), status=200)
    return Replay(cache=cache, context=context, body=lambda: body, retained=retained)


def test_a_stored_response_is_found_by_the_same_bytes(cache: ResponseCache, events: list[Event]) -> None:
    replay(cache).store(REQUEST, respond())
    found = cache.find(REQUEST, "10.0.0.1")
    assert found is not None
    head, _, body = found.partition(b"\r\n\r\n")
    assert body == b"body"
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"X-A: 1" in head
    assert b"then" not in head
    assert b" GMT" in head
    (event,) = events
    assert isinstance(event, RequestServed)
    assert (event.client, event.status, event.path) == ("10.0.0.1", 200, "/v2/")


def test_other_bytes_are_not_found(cache: ResponseCache, events: list[Event]) -> None:
    replay(cache).store(REQUEST, respond())
    assert cache.find(REQUEST + b" ", "") is None
    assert not events


def test_a_response_whose_body_is_gone_is_parsed(cache: ResponseCache, events: list[Event]) -> None:
    replay(cache, body=None).store(REQUEST, respond())
    assert cache.find(REQUEST, "") is None
    assert not events


def test_an_error_is_not_stored(cache: ResponseCache) -> None:
    replay(cache).store(REQUEST, respond(status=206))
    assert cache.find(REQUEST, "") is None


def test_a_response_that_ends_the_connection_is_not_stored(cache: ResponseCache) -> None:
    response = respond()
    response.force_close()
    replay(cache).store(REQUEST, response)
    assert cache.find(REQUEST, "") is None


def test_a_long_request_is_not_stored(cache: ResponseCache) -> None:
    request = b"x" * (REQUEST_MAX + 1)
    replay(cache).store(request, respond())
    assert cache.find(request, "") is None


@pytest.mark.parametrize(
    ("retained", "is_stored"), [(WEIGHT_MAX - OVERHEAD - 1000, True), (WEIGHT_MAX, False)]
)
def test_a_heavy_response_is_not_stored(cache: ResponseCache, retained: int, is_stored: bool) -> None:
    replay(cache, retained=retained).store(REQUEST, respond())
    assert (cache.find(REQUEST, "") is not None) == is_stored


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"method": "HEAD"}, True),
        ({"method": "POST"}, False),
        ({"version": HttpVersion10}, False),
        ({"should_close": True}, False),
        ({"headers": {"Host": "m", "ACCEPT": "*/*"}}, True),
        ({"headers": {"Authorization": "x"}}, False),
        ({"headers": {"Range": "bytes=0-1"}}, False),
    ],
)
def test_only_requests_without_other_headers_are_plain(change: dict[str, object], expected: bool) -> None:
    message = {"version": HttpVersion11, "method": "GET", "should_close": False, "headers": {"Host": "m"}}
    assert is_plain(SimpleNamespace(**{**message, **change})) == expected
