"""Values and errors as responses."""

import json
from unittest.mock import Mock

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from regmirror.errors import RangeInvalid, Unavailable, Unsupported
from regmirror.oci.names import Digest
from regmirror.v2.responses import (
    SLICE,
    Internal,
    abort,
    content_headers,
    error_response,
    json_response,
    not_modified,
    warning_header,
    whole_response,
)

DIGEST = Digest("sha256:" + "0" * 64)


def test_content_has_its_digest_as_entity_tag() -> None:
    headers = content_headers(DIGEST, "a/b", "regmirror; hit")
    assert headers["ETag"] == f'"{DIGEST}"'
    assert headers["Docker-Content-Digest"] == DIGEST
    assert headers["Content-Type"] == "a/b"
    assert "Warning" not in headers
    assert content_headers(DIGEST, "a/b", "", "old")["Warning"] == '299 - "old"'


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("plain", '299 - "plain"'),
        ('a "b" \\', '299 - "a \\"b\\" \\\\"'),
        ("line\r\nSet-Cookie: x", '299 - "line??Set-Cookie: x"'),
        ("ü", '299 - "?"'),
    ],
)
def test_a_warning_cannot_break_the_header(text: str, header: str) -> None:
    assert warning_header(text) == header


def test_a_long_warning_is_cut() -> None:
    assert len(warning_header("x" * 5000)) == len('299 - ""') + 1000


@pytest.mark.parametrize("size", [0, SLICE, SLICE + 1, 3 * SLICE + 5])
async def test_a_whole_response_has_its_length(size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    response = whole_response(body[:size], {})
    payload = response.body
    if size <= SLICE:
        assert (payload or b"") == body[:size]
        return
    assert not isinstance(payload, (bytes, bytearray))
    assert payload is not None
    assert payload.size == size
    written = bytearray()

    async def write(piece: memoryview) -> None:
        assert len(piece) <= SLICE
        written.extend(piece)

    await payload.write(Mock(write=write))
    assert written == body[:size]


def test_a_sliced_body_is_text_for_debugging() -> None:
    payload = whole_response(b"a" * (SLICE + 1), {}).body
    assert payload is not None
    assert not isinstance(payload, (bytes, bytearray))
    assert payload.decode() == "a" * (SLICE + 1)


def test_json_has_a_media_type_without_parameters() -> None:
    response = json_response({"a": 1}, {"Link": "x"})
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Link"] == "x"
    assert response.headers["Docker-Distribution-Api-Version"] == "registry/2.0"
    assert response.body == b'{"a":1}'


def test_a_304_has_no_media_type() -> None:
    response = not_modified(content_headers(DIGEST, "a/b", ""))
    assert response.status == 304
    assert response.headers["ETag"] == f'"{DIGEST}"'
    assert "a/b" not in response.headers.values()


def errors_of(response: web.Response) -> list[dict[str, object]]:
    assert isinstance(response.body, bytes)
    errors: list[dict[str, object]] = json.loads(response.body)["errors"]
    return errors


def test_an_error_is_the_json_of_the_specification() -> None:
    response = error_response(Internal("broken"))
    assert response.status == 500
    (error,) = errors_of(response)
    assert error["message"] == "broken"
    assert error["detail"] == {}


def test_an_error_has_the_headers_of_its_status() -> None:
    assert error_response(Unavailable("x", retry_after=2.2)).headers["Retry-After"] == "3"
    assert error_response(Unavailable("x")).headers["Retry-After"] == "1"
    assert error_response(Unsupported("x")).headers["Allow"] == "GET, HEAD"
    assert error_response(RangeInvalid("x", 77)).headers["Content-Range"] == "bytes */77"


def test_an_aborted_response_closes_the_connection() -> None:
    transport = Mock()
    abort(make_mocked_request("GET", "/", transport=transport))
    transport.close.assert_called_once_with()


def test_an_abort_after_the_client_has_left_does_nothing() -> None:
    abort(Mock(transport=None))
