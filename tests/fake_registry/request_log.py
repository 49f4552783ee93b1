"""The requests that a fake server has received, and waiting for them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from multidict import CIMultiDict, MultiDict, MultiMapping

from tests.fake_registry.notifier import TIMEOUT, Notifier

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
Outcome = Literal["waiting", "complete", "cut", "aborted"]


@dataclass(eq=False)
class RecordedRequest:
    """One request as it arrived, and the outcome of its response. Recorded before the response begins.

    path and query_string are byte for byte what the client sent; query is decoded.
    form holds the fields of a POSTed form. reference is a tag or digest, None where none belongs.
    status is 0 until the response begins. sent_bytes counts body bytes written to the connection,
    which may be more than the client received. outcome is "complete", "cut" by a fault, or "aborted"
    by the client. answered_at is the loop's time of the headers.
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
        """The scopes requested at the token endpoint, in order."""
        lines = [*self.query.getall("scope", []), *self.form.getall("scope", [])]
        return [scope for line in lines for scope in line.split()]

    def __repr__(self) -> str:
        query = f"?{self.query_string}" if self.query_string else ""
        state = f"{self.status or '-'} {self.sent_bytes} bytes, {self.outcome}"
        return f"<{self.kind}: {self.method} {self.path}{query} -> {state}>"


@dataclass(frozen=True)
class Match:
    """A filter of requests: None matches any value, and `where` is one more condition."""

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


class RequestLog(Notifier):
    """Stores every request in order of arrival, and wakes tests when something happens."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[RecordedRequest] = []

    def record(self, request: RecordedRequest) -> None:
        self.requests.append(request)
        self.notify()

    def clear(self) -> None:
        """Delete the requests so far; those in progress are not recorded again."""
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

    def describe(self) -> str:
        return "; requests:\n  " + ("\n  ".join(map(repr, self.requests)) or "none")
