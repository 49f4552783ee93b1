"""Events: frozen values that the core emits and that metrics and logs handle.

``Emit`` is synchronous, never raises and never blocks. ``upstream`` is always the canonical name
of an upstream in the configuration. Times are in seconds, sizes in bytes.
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
    """A client request has ended. Exactly one is emitted for each request.

    ``kind`` is empty for requests without content (ping, catalog, unknown paths).
    ``first_byte`` is the time from the start of the request to the headers of the response.
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
class UpstreamRequestEnded:
    """A request to an upstream has ended; without a response ``status`` is 0 and ``reason`` is set."""

    upstream: str
    kind: Kind
    method: str
    path: str
    status: int
    seconds: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TokenRequested:
    """A request to a token endpoint has ended; without a response ``status`` is 0."""

    upstream: str
    status: int


@dataclass(frozen=True, slots=True)
class RateLimitSeen:
    """An upstream reported its rate limit: the limit and the remaining quota, in pulls."""

    upstream: str
    limit: int
    remaining: int


@dataclass(frozen=True, slots=True)
class CircuitChanged:
    """The circuit of an upstream has opened (``is_open``) or closed; ``reason`` is the last failure."""

    upstream: str
    is_open: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class BytesFetched:
    """Content bytes have arrived from an upstream."""

    upstream: str
    kind: Kind
    count: int


@dataclass(frozen=True, slots=True)
class DownloadStarted:
    """A download has started: this process fetches the blob, or follows another process that does."""

    upstream: str


@dataclass(frozen=True, slots=True)
class FollowersChanged:
    """The number of readers of downloads in flight has changed by ``delta`` (1 or -1)."""

    delta: int


@dataclass(frozen=True, slots=True)
class DownloadEnded:
    """A download has ended: with a stored blob (``error`` is empty) or with a failure."""

    upstream: str
    repository: str
    digest: str
    size: int
    seconds: float
    resumed: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class VerificationFailed:
    """Content does not match its digest; ``where`` is the place it came from."""

    upstream: str
    kind: Kind
    digest: str
    where: Literal["upstream", "store"]


@dataclass(frozen=True, slots=True)
class BlobRemoved:
    """A stored blob was removed."""

    digest: str
    size: int
    reason: Literal["unreferenced", "evicted", "purged", "corrupt"]


@dataclass(frozen=True, slots=True)
class NotStored:
    """Content was sent to clients without being stored, or metadata could not be read or written.

    ``database``: reading or writing metadata failed. ``disk``: writing the content failed.
    ``quota``: there is not enough space. ``stalled``: another process fetches the content from an
    upstream that hangs.
    """

    reason: Literal["database", "disk", "quota", "stalled"]
    detail: str


@dataclass(frozen=True, slots=True)
class BlobRepaired:
    """A corrupt blob was replaced by a new download."""

    upstream: str
    digest: str


@dataclass(frozen=True, slots=True)
class MaintenanceEnded:
    """A collection, eviction or scrub has ended.

    ``checked`` counts the manifests and blobs that were examined.
    """

    what: Literal["collection", "eviction", "scrub"]
    checked: int
    removed: int
    removed_bytes: int
    seconds: float
    error: str = ""


Event = (
    RequestServed
    | UpstreamRequestEnded
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
    | MaintenanceEnded
)
Emit = Callable[[Event], None]


def to_all(*listeners: Emit) -> Emit:
    """An ``Emit`` that passes each event to every listener, in order.

    An OSError of a listener is ignored: a log on a full disk must not fail a pull (B44).
    """

    def emit(event: Event) -> None:
        for listener in listeners:
            with suppress(OSError):
                listener(event)

    return emit
