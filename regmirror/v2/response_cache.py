"""Answers that are given again by the exact bytes of their requests, in front of the HTTP parser.

A client that asks for a manifest sends the same bytes each time. Once the ordinary path has
answered such a request by what is here, the headers of its answer are kept under the request's
bytes. From then on it is given without parsing, for as long as the ordinary path would give just
this one: whoever built the answer attaches a ``Repeat``, which is asked each time.

Only plain requests are kept: GET or HEAD of HTTP/1.1 with none but the headers in ``PLAIN``. So no
credential is ever kept, and no condition, range, body, upgrade or request id comes this way.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import HttpVersion11, web
from aiohttp.helpers import rfc822_formatted_time

from regmirror.lru import Lru
from regmirror.telemetry.events import Emit, RequestServed
from regmirror.v2.request import RequestContext, new_request_id

#: Header names, in lower case, that change nothing about an answer, or tell nothing of a client.
PLAIN: Final = frozenset({"host", "user-agent", "accept", "accept-encoding", "accept-language", "connection"})
REQUEST_MAX: Final = 2048  # bytes of a request that is kept
WEIGHT_MAX: Final = 256 * 1024  # bytes that an entry may take
KEPT: Final = 8 * 1024 * 1024  # bytes that all entries may take, in each worker
OVERHEAD: Final = 1024  # bytes that an entry takes besides


def is_plain(message: Any) -> bool:
    """Of a request as aiohttp has parsed it: whether nothing but its first line decides the answer,
    and the connection stays open.
    """
    return bool(
        message.version == HttpVersion11
        and message.method in ("GET", "HEAD")
        and not message.should_close
        and PLAIN.issuperset(map(str.lower, message.headers))
    )


Body = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Replay:
    """How an answer is given again.

    ``body`` returns what follows the same headers once more, where the ordinary path would give
    this answer now, at once; else None. It notes whatever that path notes besides the event.
    ``held`` is how many bytes it keeps in memory.
    """

    answers: ResponseCache
    context: RequestContext
    body: Callable[[], Body | None]
    held: int = 0

    def keep(self, request: bytes, response: web.StreamResponse) -> None:
        """Give ``response``, which has just been sent, to whoever sends these bytes."""
        if response.status == 200 and response.keep_alive and len(request) <= REQUEST_MAX:
            self.answers.keep(request, response, self)


REPLAY: Final = web.ResponseKey("repeat", Replay)


@dataclass(frozen=True, slots=True)
class _Entry:
    before_date: bytes
    after_date: bytes
    body: Callable[[], Body | None]
    served: RequestServed
    weight: int


class ResponseCache:
    """The answers of one service: those of another configuration are never given."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._entries: Lru[bytes, _Entry] = Lru(KEPT, lambda _, entry: entry.weight)

    def find(self, request: bytes, client: str) -> bytes | None:
        """The answer to exactly these bytes, told to the listeners; None if they must be parsed."""
        entry = self._entries.get(request)
        if entry is None:
            return None
        began = time.perf_counter()
        body = entry.body()
        if body is None:
            return None
        self._tell(entry.served, client, time.perf_counter() - began)
        return b"".join((entry.before_date, rfc822_formatted_time().encode(), entry.after_date, body))

    def keep(self, request: bytes, response: web.StreamResponse, repeat: Replay) -> None:
        """Remember what has just been sent to a plain request."""
        head, tail = _split_head(response)
        weight = len(request) + len(head) + len(tail) + repeat.held + OVERHEAD
        if weight <= WEIGHT_MAX:
            entry = _Entry(head, tail, repeat.body, repeat.context.event(), weight)
            self._entries.put(request, entry)

    def _tell(self, like: RequestServed, client: str, seconds: float) -> None:
        self._emit(
            RequestServed(
                new_request_id(),
                client,
                like.method,
                like.path,
                like.status,
                like.kind,
                like.upstream,
                like.result,
                like.cache_status,
                like.sent_bytes,
                seconds,
                seconds,
            )
        )


def _split_head(response: web.StreamResponse) -> tuple[bytes, bytes]:
    """Status line and headers as they were sent, without the value of ``Date``."""
    lines = [f"HTTP/1.1 {response.status} {response.reason}"]
    lines += [f"{name}: {'' if name == 'Date' else value}" for name, value in response.headers.items()]
    head, date, tail = ("\r\n".join(lines) + "\r\n\r\n").encode().partition(b"\r\nDate: ")
    return head + date, tail
