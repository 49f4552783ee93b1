"""What happened, as frozen values: the core tells, metrics and logs listen.

``Emit`` is synchronous, never raises and never waits. ``upstream`` is always a canonical name
of the configuration; ``kind`` is ``manifest``, ``blob``, ``tags`` or ``referrers``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

Kind = Literal["manifest", "blob", "tags", "referrers"]
Result = Literal["hit", "miss", "revalidated", "stale", "coalesced", "error"]

KINDS: tuple[Kind, ...] = ("manifest", "blob", "tags", "referrers")
RESULTS: tuple[Result, ...] = ("hit", "miss", "revalidated", "stale", "coalesced", "error")


@dataclass(frozen=True, slots=True)
class RequestServed:
    """A client's request has ended; exactly one for each, whatever became of it.

    ``kind`` is empty for requests that concern no content (ping, catalog, unknown paths);
    times are seconds, ``first_byte`` from the request's start to its answer's headers.
    """

    request_id: str
    client: str
    method: str
    path: str
    status: int
    kind: Kind | Literal[""]
    upstream: str
    result: Result
    cache_status: str
    sent_bytes: int
    seconds: float
    first_byte: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class UpstreamAnswered:
    """An upstream answered a request (``status``) or did not (0, ``reason`` says why)."""

    upstream: str
    kind: Kind
    method: str
    path: str
    status: int
    seconds: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TokenRequested:
    """A token endpoint answered ``status``, or not at all (0)."""

    upstream: str
    status: int


@dataclass(frozen=True, slots=True)
class RateLimitSeen:
    """An upstream said how many pulls it allows and how many remain."""

    upstream: str
    limit: int
    remaining: int


@dataclass(frozen=True, slots=True)
class CircuitChanged:
    """An upstream is no longer asked because it keeps failing (``is_open``), or is asked again."""

    upstream: str
    is_open: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class BytesFetched:
    """Content bytes that arrived from an upstream."""

    upstream: str
    kind: Kind
    count: int


@dataclass(frozen=True, slots=True)
class DownloadStarted:
    """A blob begins to be fetched, or to be followed while another process fetches it."""

    upstream: str


@dataclass(frozen=True, slots=True)
class FollowersChanged:
    """Readers of downloads in flight: one more or one fewer."""

    delta: int


@dataclass(frozen=True, slots=True)
class DownloadEnded:
    """A blob's download has ended: stored (``error`` empty) or failed."""

    upstream: str
    repository: str
    digest: str
    size: int
    seconds: float
    resumed: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class VerificationFailed:
    """Content was not what its name says; ``where`` is ``upstream`` or ``store``."""

    upstream: str
    kind: Kind
    digest: str
    where: Literal["upstream", "store"]


@dataclass(frozen=True, slots=True)
class BlobRemoved:
    """A stored blob was taken away."""

    digest: str
    size: int
    reason: Literal["unreferenced", "evicted", "purged", "corrupt"]


@dataclass(frozen=True, slots=True)
class NotStored:
    """Content was passed on without being kept, or metadata could not be read or written (``database``).

    ``disk``: it cannot be written. ``quota``: there is no room for it. ``stalled``: another process
    fetches it from an upstream that hangs.
    """

    reason: Literal["database", "disk", "quota", "stalled"]
    detail: str


@dataclass(frozen=True, slots=True)
class BlobRepaired:
    """A blob that had been found to be wrong has been fetched anew."""

    upstream: str
    digest: str


@dataclass(frozen=True, slots=True)
class UpkeepEnded:
    """A collection, eviction or scrub has ended: what it removed, and how long it took.

    ``checked`` counts what was looked at.
    """

    what: Literal["collection", "eviction", "scrub"]
    checked: int
    removed: int
    removed_bytes: int
    seconds: float
    error: str = ""


Event = (
    RequestServed
    | UpstreamAnswered
    | TokenRequested
    | RateLimitSeen
    | CircuitChanged
    | BytesFetched
    | DownloadStarted
    | FollowersChanged
    | DownloadEnded
    | VerificationFailed
    | BlobRemoved
    | NotStored
    | BlobRepaired
    | UpkeepEnded
)
Emit = Callable[[Event], None]


def to_all(*listeners: Emit) -> Emit:
    """One Emit that tells every listener, in order.

    A log on a disk that is full must not fail what it would have told.
    """

    def emit(event: Event) -> None:
        for listener in listeners:
            with suppress(OSError):
                listener(event)

    return emit
