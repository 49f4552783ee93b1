"""One target for each parser that meets strangers: a function of bytes that checks a property.

A target raises AssertionError where the property does not hold, and anything else that the parser
may not raise. ``corpus/<target>/`` keeps examples: ordinary ones, and each that once failed.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

from aiohttp import web
from aiohttp.http import HttpProcessingError, HttpRequestParser
from yarl import URL

from regmirror.errors import RangeInvalid, RegistryError, UpstreamFailed
from regmirror.oci.manifests import (
    MANIFEST_MAX,
    NotAManifest,
    describes_content,
    media_type_of,
    names_a_kind,
    parse_document,
    platform_of,
    references,
)
from regmirror.oci.names import Digest, Repository
from regmirror.oci.paths import UpstreamTable, decode, split
from regmirror.upstream.auth.challenges import Challenge, parse_challenges, preferred
from regmirror.upstream.content import range_of
from regmirror.upstream.pagination import next_page
from regmirror.v2.conditions import matches_etag, may_use_range, parse_ranges
from regmirror.v2.connection import FastConnection

CORPUS = Path(__file__).parent / "corpus"
ETAG = f"sha256:{'0123456789abcdef' * 4}"
SIZE = 1000
LIMITS: dict[str, Any] = {"max_line_size": 16_384, "max_field_size": 65_536}
TABLE = UpstreamTable(
    {"docker.io": "docker.io", "index.docker.io": "docker.io", "ghcr.io": "ghcr.io", "localhost:5000": "lab"},
    "docker.io",
)
_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+|/)[a-z0-9]+)*")


def text_of(data: bytes) -> str:
    """As aiohttp decodes headers and paths."""
    return data.decode("utf-8", "surrogateescape")


# --- requests: the fast path and our pieces beside aiohttp's parser ---


def requests(data: bytes) -> None:
    """The connection parses bytes as aiohttp's parser does; where that fails or drops requests,
    ours may understand those without a body. A request that is replayed by its bytes is complete.
    """
    ours, connection = _by_connection(data)
    theirs, has_failed = _by_parser(data)
    if has_failed:
        assert not any(_has_body(headers) for _, _, _, headers, _ in ours)
    else:
        assert ours == theirs or _has_upgrade(data)
    if connection._plain_request:
        assert connection._plain_request == data
        twice, has_failed = _by_parser(data + data)
        assert not has_failed
        assert twice == theirs * 2
        assert len(theirs) == 1
        method, _, version, _, should_close = theirs[0]
        assert (method in ("GET", "HEAD"), version, should_close) == (True, (1, 1), False)
        assert b"\r\n\r\n" not in data[:-4], "a body, or a second request"


def _has_body(headers: tuple[tuple[bytes, bytes], ...]) -> bool:
    lower = {(name.lower(), value) for name, value in headers}
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in lower
    )


def _has_upgrade(data: bytes) -> bool:
    return b"upgrade" in data.lower() or data.lstrip(b"\r\n").startswith(b"CONNECT")


def _by_connection(data: bytes) -> tuple[list[Any], FastConnection]:
    connection = _connection()
    connection.data_received(data)
    messages = [_meaning(message) for message, _ in connection._messages if hasattr(message, "method")]
    return messages, connection


def _connection() -> FastConnection:
    unused: Any = None  # no request is served
    return FastConnection(web.Server(_never, loop=_loop()), unused, loop=_loop(), **LIMITS)


def _by_parser(data: bytes) -> tuple[list[Any], bool]:
    parser = HttpRequestParser(_connection(), _loop(), 2**16, **LIMITS, max_msg_queue_size=32)
    try:
        messages, _, _ = parser.feed_data(data)
    except HttpProcessingError:
        return [], True
    return [_meaning(message) for message, _ in messages], False


def _meaning(message: Any) -> Any:
    return (
        message.method,
        message.path,
        tuple(message.version),
        message.raw_headers,
        message.should_close,
    )


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def _never(*_: Any) -> Any:
    raise AssertionError("nothing is looked up or handled here")


# --- what upstreams send ---


def challenges(data: bytes) -> None:
    """Parsing never raises, and a serialised challenge parses to an equal one."""
    found = parse_challenges(text_of(data).split("\n"))
    assert preferred(found) is None or preferred(found) in found
    for challenge in found:
        assert all(" " not in scope for scope in challenge.scopes)
        written = _write(challenge)
        if len(written) < 8_000:
            assert parse_challenges([written]) == [challenge]


def _write(challenge: Challenge) -> str:
    escaped = {
        name: value.replace("\\", "\\\\").replace('"', '\\"') for name, value in challenge.parameters.items()
    }
    return f"{challenge.scheme} " + ",".join(f'{name}="{value}"' for name, value in escaped.items())


def links(data: bytes) -> None:
    """The next page belongs to the same list, and its serialised link parses to it."""
    current = URL("https://registry.example/v2/team/app/tags/list?n=10")
    there = next_page(current, text_of(data).split("\n"))
    if there is not None:
        assert (there.origin(), there.raw_path) == (current.origin(), current.raw_path)
        assert there.raw_query_string
        assert next_page(current, [f'<{there}>; rel="next"']) == there


def manifests(data: bytes) -> None:
    """NotAManifest, or valid references; equal ones after the document is serialised again."""
    try:
        document = parse_document(data[:MANIFEST_MAX])
        found = references(document)
        is_content = describes_content(document)
        again = parse_document(json.dumps(document).encode())
        kind = media_type_of(document, "")
    except NotAManifest:
        return
    assert names_a_kind(kind)
    assert describes_content(again) == is_content
    assert references(again) == found
    for item in found:
        assert Digest(item.digest) == item.digest
        assert -1 <= item.size < 2**63
        assert item.role in ("config", "layer", "manifest", "subject")
    items = document.get("manifests")
    for child in items if isinstance(items, list) else ():
        assert isinstance(platform_of(child) if isinstance(child, dict) else "", str)


def content_ranges(data: bytes) -> None:
    """UpstreamFailed, or the requested range."""
    line, _, rest = data.partition(b"\n")
    offset = int(rest) if rest.isdigit() and len(rest) < 19 else 0
    context: Any = SimpleNamespace(status=206, headers={"Content-Range": text_of(line)}, host="upstream")
    try:
        part = range_of("upstream", context, offset)
    except UpstreamFailed:
        return
    assert part.start == offset
    assert part.size is None or part.size > offset


# --- what clients send ---


def ranges(data: bytes) -> None:
    """RangeInvalid, None, or spans within the blob; equal ones after they are serialised."""
    try:
        found = parse_ranges(text_of(data), SIZE)
    except RangeInvalid as error:
        assert error.size == SIZE  # noqa: PT017  # a target is no test
        return
    if found is None:
        return
    assert found
    assert all(0 <= start < stop <= SIZE for start, stop in found)
    assert len(found) == 1 or sum(stop - start for start, stop in found) <= SIZE
    written = ",".join(f"{start}-{stop - 1}" for start, stop in found)
    assert parse_ranges(f"bytes={written}", SIZE) == found


def conditions(data: bytes) -> None:
    """A list with the entity tag matches, one without it does not; a strong match lets a range count."""
    header = text_of(data)
    without = header.replace(ETAG, "-").replace("*", "-")
    assert not matches_etag(without, ETAG)
    for tag in (f'"{ETAG}"', f'W/"{ETAG}"', ETAG, "*"):
        assert matches_etag(f"{without},{tag}", ETAG)
    assert not may_use_range(without, ETAG)
    assert may_use_range(f' "{ETAG}" ', ETAG)
    assert not may_use_range(f'W/"{ETAG}"', ETAG)


def paths(data: bytes) -> None:
    """RegistryError, None, or values that are safe; every spelling of a repository is one value."""
    raw, _, ns = text_of(data).partition("\n")
    try:
        assert decode(quote(raw, safe="/", errors="surrogateescape")) == raw, "decoded once"
        path = split(decode(raw))
        if path is None or path.endpoint in ("ping", "catalog"):
            return
        repository = TABLE.resolve(path.name, prefix=path.prefix, ns=[ns] if ns else [])
    except RegistryError as error:
        assert 400 <= error.status < 500  # noqa: PT017  # a target is no test
        return
    assert repository.upstream in TABLE.hosts.values()
    assert _NAME.fullmatch(repository.name)
    assert ".." not in repository.name.split("/")
    host = next(name for name, upstream in TABLE.hosts.items() if upstream == repository.upstream)
    for spelling in (
        f"/v2/{host}/{repository.name}/manifests/x",
        f"/{host}/v2/{repository.name}/manifests/x",
    ):
        assert _resolve(spelling) == repository


def _resolve(spelling: str) -> Repository:
    path = split(decode(spelling))
    assert path is not None
    return TABLE.resolve(path.name, prefix=path.prefix)


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (requests, challenges, links, manifests, content_ranges, ranges, conditions, paths)
}
