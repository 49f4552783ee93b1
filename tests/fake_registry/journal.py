"""What a fake server was asked, and the waiting for it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from multidict import CIMultiDict, MultiDict, MultiMapping

Kind = Literal[
    "ping",
    "manifest",
    "blob",
    "tags",
    "referrers",
    "catalog",
    "token",
    "storage",
    "upload",
    "other",
]
Outcome = Literal["waiting", "complete", "cut", "broken off"]

TIMEOUT = 10.0  # seconds that a test waits for an event before it fails


@dataclass(eq=False)
class RecordedRequest:
    """One request as it arrived, and how its answer fared. Recorded before anything is answered.

    path and query_string are byte for byte what the client sent; query is decoded.
    form holds the fields of a POSTed form. reference is a tag or digest, None where none belongs.
    status is 0 until the answer begins. sent_bytes counts body bytes handed to the connection,
    which may be more than the client took in. outcome tells whether the answer was sent whole,
    cut short by a fault, or broken off by the client. answered_at is the loop's time of the headers.
    """

    method: str
    path: str
    query_string: str
    query: MultiMapping[str]
    headers: CIMultiDict[str]
    kind: Kind
    repository: str | None = None
    reference: str | None = None
    peer_port: int = 0
    form: MultiMapping[str] = field(default_factory=MultiDict[str])
    status: int = 0
    sent_bytes: int = 0
    outcome: Outcome = "waiting"
    responded_at: float | None = None

    @property
    def authorization(self) -> str | None:
        return self.headers.get("Authorization")

    @property
    def scopes(self) -> list[str]:
        """The scopes asked for at the token endpoint, in order."""
        lines = [*self.query.getall("scope", []), *self.form.getall("scope", [])]
        return [scope for line in lines for scope in line.split()]

    def __repr__(self) -> str:
        query = f"?{self.query_string}" if self.query_string else ""
        state = f"{self.status or '-'} {self.sent_bytes} bytes, {self.outcome}"
        return f"<{self.kind}: {self.method} {self.path}{query} -> {state}>"


@dataclass(frozen=True)
class Match:
    """Which requests are meant; what is None does not matter. `where` decides the rest."""

    kind: Kind | None = None
    method: str | None = None
    repository: str | None = None
    reference: str | None = None
    status: int | None = None
    where: Callable[[RecordedRequest], bool] | None = None

    def matches(self, request: RecordedRequest) -> bool:
        return (
            self.kind in (None, request.kind)
            and self.method in (None, request.method)
            and self.repository in (None, request.repository)
            and self.reference in (None, request.reference)
            and self.status in (None, request.status)
            and (self.where is None or self.where(request))
        )

    def __repr__(self) -> str:
        given = {name: value for name, value in vars(self).items() if value is not None}
        return " ".join(f"{name}={value}" for name, value in given.items()) or "any"


class Journal:
    """Remembers every request in order of arrival, and wakes tests when something happens."""

    def __init__(self) -> None:
        self.requests: list[RecordedRequest] = []
        self._changed = asyncio.Event()

    def record(self, request: RecordedRequest) -> None:
        self.requests.append(request)
        self.notify()

    def notify(self) -> None:
        """Wake everybody who waits for a condition."""
        self._changed.set()
        self._changed = asyncio.Event()

    def clear(self) -> None:
        """Forget the requests so far; those still being answered go on unrecorded."""
        self.requests.clear()

    def find(
        self,
        kind: Kind | None = None,
        method: str | None = None,
        repository: str | None = None,
        reference: str | None = None,
        status: int | None = None,
        where: Callable[[RecordedRequest], bool] | None = None,
    ) -> list[RecordedRequest]:
        """The requests so far that match, in order of arrival."""
        match = Match(kind, method, repository, reference, status, where)
        return [request for request in self.requests if match.matches(request)]

    def count(
        self,
        kind: Kind | None = None,
        method: str | None = None,
        repository: str | None = None,
        reference: str | None = None,
        status: int | None = None,
        where: Callable[[RecordedRequest], bool] | None = None,
    ) -> int:
        """How many of the requests so far match."""
        return len(self.find(kind, method, repository, reference, status, where))

    def sent_bytes(self, kind: Kind | None = None, reference: str | None = None) -> int:
        """Body bytes handed to the connections for the matching requests."""
        return sum(request.sent_bytes for request in self.find(kind, reference=reference))

    async def wait_for_requests(
        self,
        kind: Kind | None = None,
        method: str | None = None,
        repository: str | None = None,
        reference: str | None = None,
        status: int | None = None,
        where: Callable[[RecordedRequest], bool] | None = None,
        *,
        count: int = 1,
        timeout: float = TIMEOUT,
    ) -> list[RecordedRequest]:
        """Wait until at least `count` matching requests have arrived, and return them.

        Raises AssertionError, with what arrived instead, when they do not within `timeout` seconds.
        """
        match = Match(kind, method, repository, reference, status, where)

        def found() -> list[RecordedRequest]:
            return [request for request in self.requests if match.matches(request)]

        await self.wait_until(lambda: len(found()) >= count, timeout, f"{count} x [{match}]")
        return found()

    async def wait_until(
        self, condition: Callable[[], bool], timeout: float = TIMEOUT, description: str = "the condition"
    ) -> None:
        """Wait until the condition holds; it is looked at whenever anything happens here.

        Raises AssertionError when it does not hold within `timeout` seconds.
        """
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    await self._changed.wait()
        except TimeoutError:
            requests = "\n  ".join(map(repr, self.requests)) or "nothing"
            raise AssertionError(f"not within {timeout} s: {description}; requests:\n  {requests}") from None
