"""Whole responses, replayed by the exact bytes of their requests, in front of the HTTP parser.

A client sends the same bytes each time it requests a manifest. When the ordinary path has served
such a request as a hit, the headers of its response are stored under the request's bytes. Later
requests are then served without parsing, as long as the ordinary path would send the same response:
the handler attaches a ``Replay``, whose ``body`` decides that for every request.

Only plain requests are stored: GET or HEAD of HTTP/1.1 with no other headers than ``PLAIN``. So no
credential is ever stored, and conditions, ranges, bodies, upgrades and request ids are parsed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from typing import Any, Final

from aiohttp import HttpVersion11, web

from regmirror.lru import Lru
from regmirror.telemetry.events import Emit, RequestServed
from regmirror.v2.request import RequestContext, new_request_id

#: Names of headers, in lower case, that do not change a response and say nothing about a client.
PLAIN: Final = frozenset({"host", "user-agent", "accept", "accept-encoding", "accept-language", "connection"})
REQUEST_MAX: Final = 2048  # bytes of a request that is stored
WEIGHT_MAX: Final = 256 * 1024  # bytes of one entry
TOTAL_MAX: Final = 8 * 1024 * 1024  # bytes of all entries, in each worker
OVERHEAD: Final = 1024  # bytes of an entry besides its texts


def is_plain(message: Any) -> bool:
    """Whether the first line of a parsed request alone decides its response, and the connection stays."""
    return bool(
        message.version == HttpVersion11
        and message.method in ("GET", "HEAD")
        and not message.should_close
        and PLAIN.issuperset(map(str.lower, message.headers))
    )


Body = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """How a response can be sent again, from ``cache``.

    ``body`` returns the body if the ordinary path would send this response now, without waiting,
    and None otherwise. It records the pull as that path does. ``retained`` is the size of what it
    keeps in memory, in bytes.
    """

    cache: ResponseCache
    context: RequestContext
    body: Callable[[], Body | None]
    retained: int = 0

    def store(self, request: bytes, response: web.StreamResponse) -> None:
        """Store ``response``, which has just been sent, for the next request of these bytes."""
        if response.status == 200 and response.keep_alive and len(request) <= REQUEST_MAX:
            self.cache.store(request, response, self)


REPLAY: Final = web.ResponseKey("replay", Replay)


@dataclass(frozen=True, slots=True)
class _Entry:
    before_date: bytes
    after_date: bytes
    body: Callable[[], Body | None]
    served: RequestServed
    weight: int


class ResponseCache:
    """The responses of one configuration."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._entries: Lru[bytes, _Entry] = Lru(TOTAL_MAX, lambda _, entry: entry.weight)

    def find(self, request: bytes, client: str) -> bytes | None:
        """The response to exactly these bytes, and emit its event; None if they must be parsed."""
        entry = self._entries.get(request)
        if entry is None:
            return None
        began = time.perf_counter()
        body = entry.body()
        if body is None:
            return None
        served, seconds = entry.served, time.perf_counter() - began
        self._emit(
            RequestServed(
                new_request_id(),
                client,
                served.method,
                served.path,
                served.status,
                served.kind,
                served.upstream,
                served.result,
                served.cache_status,
                served.sent_bytes,
                seconds,
                seconds,
            )
        )
        return b"".join((entry.before_date, _http_date(int(time.time())), entry.after_date, body))

    def store(self, request: bytes, response: web.StreamResponse, replay: Replay) -> None:
        """Store the headers of a response to a plain request."""
        head, tail = _split_head(response)
        weight = len(request) + len(head) + len(tail) + replay.retained + OVERHEAD
        if weight <= WEIGHT_MAX:
            self._entries.put(request, _Entry(head, tail, replay.body, replay.context.event(), weight))


@lru_cache(maxsize=1)
def _http_date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()


def _split_head(response: web.StreamResponse) -> tuple[bytes, bytes]:
    """Status line and headers as they were sent, without the value of ``Date``."""
    lines = [f"HTTP/1.1 {response.status} {response.reason}"]
    lines += [f"{name}: {'' if name == 'Date' else value}" for name, value in response.headers.items()]
    head, date, tail = ("\r\n".join(lines) + "\r\n\r\n").encode().partition(b"\r\nDate: ")
    return head + date, tail
