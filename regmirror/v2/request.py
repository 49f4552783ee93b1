"""The context of one client request: what is known about it while it is served, and how it ended."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import Final, Literal

from aiohttp.web_request import BaseRequest

from regmirror.mirror.cache_status import CacheStatus
from regmirror.telemetry.events import Kind, RequestServed, Result

UNKNOWN_UPSTREAM: Final = "unknown"  # the label of requests that name no upstream of this mirror


def new_request_id() -> str:
    """A random name for one request in the log."""
    return f"{random.getrandbits(64):016x}"


@dataclass(slots=True)
class RequestContext:
    """Filled in by the handlers and emitted once, as a RequestServed, when the request has ended.

    ``began`` and ``ready_at`` are monotonic seconds: when the request was received, and when its
    content was available. ``headers`` are added to the response, error responses included.
    """

    request: BaseRequest
    began: float = field(default_factory=time.perf_counter)
    kind: Kind | Literal[""] = ""
    upstream: str = UNKNOWN_UPSTREAM
    result: Result = "error"
    cache_status: str = ""
    status: int = 0
    sent_bytes: int = 0
    ready_at: float = 0.0
    error: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    def record(self, cache_status: CacheStatus) -> None:
        """Record how the content was obtained; only sending it remains."""
        self.result, self.cache_status = cache_status.result, cache_status.header
        self.ready_at = time.perf_counter()

    def event(self) -> RequestServed:
        """The request as it stands now, to be emitted."""
        now = time.perf_counter()
        return RequestServed(
            request_id=self.request.headers.get("X-Request-Id", "")[:64] or new_request_id(),
            client=self.request.remote or "",
            method=self.request.method,
            path=self.request.rel_url.raw_path,
            status=self.status,
            kind=self.kind,
            upstream=self.upstream,
            result=self.result,
            cache_status=self.cache_status,
            sent_bytes=self.sent_bytes,
            seconds=now - self.began,
            first_byte=(self.ready_at or now) - self.began,
            error=self.error,
        )
