"""The faults of an upstream, as actions that a test attaches to matching requests.

Three stages decide which responses an action may change:
ALWAYS    every matching request, before the registry handles it (a challenge included);
CONTENT   only responses that would have been 2xx, so that a 401 before a token request does not count;
BODY      as CONTENT, and never a HEAD, which has no body to spoil.
"""

import asyncio
import gzip
from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum
from typing import ClassVar

from multidict import CIMultiDict

from tests.fake_registry.gate import Gate
from tests.fake_registry.notifier import TIMEOUT, Notifier
from tests.fake_registry.request_log import Match, RecordedRequest
from tests.fake_registry.response import Cut, PlannedResponse
from tests.fake_registry.sources import Flipped, InMemory, read_all


class Stage(IntEnum):
    ALWAYS = 0
    CONTENT = 1
    BODY = 2


class Dropped(Exception):
    """The connection ends without a response."""

    def __init__(self, *, reset: bool) -> None:
        super().__init__("dropped before the response")
        self.reset = reset


class Action:
    """One fault: it acts `before` the response is planned, or as a `change` of it."""

    stage: ClassVar[Stage] = Stage.ALWAYS

    async def before(self, request: RecordedRequest) -> None:
        """Called when the request has arrived; may wait, or raise Dropped."""

    def change(self, response: PlannedResponse, request: RecordedRequest) -> None:
        """Called with the response that is about to be sent."""


class Fault:
    """Actions for the requests that match: the first `skip` are spared, then `times` are hit."""

    def __init__(self, actions: Iterable[Action], match: Match, times: int | None = 1, skip: int = 0) -> None:
        self.actions = list(actions)
        self.match = match
        self.times = times
        self.skip = skip
        self.hits = 0
        self.stage = max(action.stage for action in self.actions)
        self._hits = Notifier()

    def matches(self, request: RecordedRequest) -> bool:
        """Whether this request is to be hit; counts it."""
        if not self.match.matches(request) or self.times == self.hits:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.hits += 1
        self._hits.notify()
        return True

    async def wait_for_hits(self, count: int = 1, timeout: float = TIMEOUT) -> None:
        """Wait until the fault has struck `count` times; AssertionError after `timeout` seconds."""
        await self._hits.wait_until(lambda: self.hits >= count, timeout, f"{count} hits of {self!r}")

    def remove(self) -> None:
        """Strike no more."""
        self.times = self.hits

    def __repr__(self) -> str:
        names = ", ".join(type(action).__name__ for action in self.actions)
        return f"<Fault {names} on {self.match}: {self.hits} of {self.times or 'any'}>"


# --- before the response ---


class Status(Action):
    """Another status with its headers and body, instead of the response."""

    def __init__(self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        self.status = status
        self.headers = dict(headers or {})
        self.body = body

    def change(self, response: PlannedResponse, request: RecordedRequest) -> None:
        response.status = self.status
        response.headers = CIMultiDict(self.headers)
        response.replace_body(InMemory(self.body))


class Html(Status):
    """A captive portal: 200, text/html, and a page that has nothing to do with the request."""

    def __init__(self, body: bytes = b"<!DOCTYPE html><title>Sign in to the network</title>") -> None:
        super().__init__(200, {"Content-Type": "text/html; charset=utf-8"}, body)


class Delay(Action):
    """The response comes `seconds` late. Prefer Hold, which does not depend on time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def before(self, request: RecordedRequest) -> None:
        await asyncio.sleep(self.seconds)


class Hold(Gate, Action):
    """No response until the test releases it. Never released, it is a black hole."""

    async def before(self, request: RecordedRequest) -> None:
        await self.wait()


class DropBeforeResponse(Action):
    """The connection is closed without a response: by FIN, or by RST.

    HTTP clients repeat such a GET once by themselves, aiohttp on any connection, others on one used
    before, so that a single hit may go unnoticed; with times=None it never does.
    """

    def __init__(self, *, reset: bool = False) -> None:
        self.reset = reset

    async def before(self, request: RecordedRequest) -> None:
        raise Dropped(reset=self.reset)


# --- headers and status of a response with content ---


class Redirect(Action):
    """A redirect instead of the content. location may be a function of the request."""

    stage = Stage.CONTENT

    def __init__(self, location: str | Callable[[RecordedRequest], str], status: int = 307) -> None:
        self.location = location
        self.status = status

    def change(self, response: PlannedResponse, request: RecordedRequest) -> None:
        location = self.location if isinstance(self.location, str) else self.location(request)
        response.status = self.status
        response.headers = CIMultiDict({"Location": location})
        response.replace_body(InMemory(b""))


class RedirectLoop(Redirect):
    """A redirect to the same path with one hop more, each time; register it with times=None."""

    def __init__(self, status: int = 307) -> None:
        super().__init__(self._next, status)

    @staticmethod
    def _next(request: RecordedRequest) -> str:
        return f"{request.path}?hop={int(request.query.get('hop', '0')) + 1}"


class SetHeaders(Action):
    """Headers added, or set to other values."""

    stage = Stage.CONTENT

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.headers = dict(headers)

    def change(self, response: PlannedResponse, request: RecordedRequest) -> None:
        response.headers.update(self.headers)


class StripHeaders(Action):
    """Headers left out, those included that the server adds by itself. For Content-Length use Chunked."""

    stage = Stage.CONTENT

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(names)

    def change(self, response: PlannedResponse, request: RecordedRequest) -> None:
        response.hidden.update(self.names)


class Chunked(Action):
    """No Content-Length."""

    stage = Stage.CONTENT

    def change(self, response: PlannedResponse, request: RecordedRequest) -> None:
        response.length = None


class IgnoreRange(Action):
    """200 with everything, whichever range was requested."""

    stage = Stage.CONTENT

    def change(self, response: PlannedResponse, request: RecordedRequest) -> None:
        if response.status == 206:
            response.status = 200
            del response.headers["Content-Range"]
            response.select(0, response.source.size)


class WrongContentRange(Action):
    """206 whose Content-Range claims another place than its bytes come from."""

    stage = Stage.CONTENT

    def __init__(self, value: str | None = None) -> None:
        self.value = value

    def change(self, response: PlannedResponse, request: RecordedRequest) -> None:
        if response.status == 206:
            shifted = f"bytes {response.start + 1}-{response.stop}/{response.source.size + 1}"
            response.headers["Content-Range"] = self.value or shifted


# --- the body ---


class Truncate(Action):
    """FIN after so many body bytes, short of the announced Content-Length."""

    stage = Stage.BODY

    def __init__(self, after: int) -> None:
        self.after = after

    def change(self, response: PlannedResponse, request: RecordedRequest) -> None:
        response.cut = Cut(self.after, reset=False)


class Reset(Action):
    """RST after the client has received so many body bytes."""

    stage = Stage.BODY

    def __init__(self, after: int = 0) -> None:
        self.after = after

    def change(self, response: PlannedResponse, request: RecordedRequest) -> None:
        response.cut = Cut(self.after, reset=True)


class Corrupt(Action):
    """One byte of the whole content differs, the middle one by default; the length is right."""

    stage = Stage.BODY

    def __init__(self, at: int | None = None) -> None:
        self.at = at

    def change(self, response: PlannedResponse, request: RecordedRequest) -> None:
        at = response.source.size // 2 if self.at is None else self.at % response.source.size
        response.source = Flipped(response.source, at)


class WrongLength(Action):
    """Content-Length is off by so many bytes.

    Negative: the body ends there and the response looks complete. Positive: FIN short of it.
    """

    stage = Stage.BODY

    def __init__(self, by: int) -> None:
        self.by = by

    def change(self, response: PlannedResponse, request: RecordedRequest) -> None:
        response.length = response.stop - response.start + self.by


class GzipEncoded(Action):
    """Content-Encoding: gzip, although the request did not accept it."""

    stage = Stage.BODY

    def change(self, response: PlannedResponse, request: RecordedRequest) -> None:
        response.headers["Content-Encoding"] = "gzip"
        response.replace_body(InMemory(gzip.compress(read_all(response.source), mtime=0)))


class Slow(Action):
    """So many body bytes a second."""

    stage = Stage.BODY

    def __init__(self, bytes_per_second: float) -> None:
        self.bytes_per_second = bytes_per_second

    def change(self, response: PlannedResponse, request: RecordedRequest) -> None:
        response.bytes_per_second = self.bytes_per_second


class Pause(Gate, Action):
    """Headers and so many body bytes are sent, the remaining ones when the test releases it."""

    stage = Stage.BODY

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def change(self, response: PlannedResponse, request: RecordedRequest) -> None:
        response.pauses.append((self.after, self))
