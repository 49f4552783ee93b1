"""The circuit of one upstream and its rate limits, as pure functions of a frozen value.

Times are wall-clock seconds, because several processes share them and they outlive a restart. A
time further ahead than any function here could have set it counts as past: the clock was set back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

OPENS_AFTER: Final = 3  # failures in a row
PROBE_INTERVAL: Final = 5.0  # seconds between two probes, of all processes together
WAIT_MAX: Final = 3600.0  # seconds; the longest Retry-After that is respected
QUOTA_MAX_AGE: Final = 60.0  # seconds after which the remaining quota has to be refreshed
_ROUNDING: Final = 1.0  # seconds; a sum of two times may come out a little larger

#: The requests that a 429 limits: manifests and lists, blobs, tokens, or blobs of storage hosts.
Scope = Literal["manifests", "blobs", "tokens", "storage"]


@dataclass(frozen=True, slots=True)
class Circuit:
    """The health of one upstream, as reached with one credential.

    The circuit is open since ``opened_at`` if that is not 0; ``reason`` is that of the last failure.
    ``limit`` and ``remaining`` are the quota reported at ``seen_at``, -1 if none was reported.
    """

    failures: int = 0
    failed_at: float = 0.0
    opened_at: float = 0.0
    probe_at: float = 0.0
    reason: str = ""
    manifests_limited_until: float = 0.0
    blobs_limited_until: float = 0.0
    tokens_limited_until: float = 0.0
    limit: int = -1
    remaining: int = -1
    seen_at: float = 0.0

    @property
    def is_open(self) -> bool:
        return self.opened_at > 0


# --- failures ---


def after_failure(circuit: Circuit, began: float, now: float, reason: str) -> Circuit:
    """Count the failure of a request that started at ``began``; enough in a row open the circuit.

    Requests that were in flight when an earlier failure was counted are not counted: an event
    that breaks fifty connections at once is one failure.
    """
    if began < circuit.failed_at <= now:
        return circuit
    failures = min(circuit.failures + 1, OPENS_AFTER)
    failed = replace(circuit, failures=failures, failed_at=now, reason=reason)
    if circuit.is_open or failures < OPENS_AFTER:
        return failed
    return replace(failed, opened_at=now, probe_at=now + PROBE_INTERVAL)


def after_success(circuit: Circuit) -> Circuit:
    """Close the circuit and reset the failures, because the upstream has responded."""
    if not circuit.failures and not circuit.is_open:
        return circuit
    return replace(circuit, failures=0, failed_at=0.0, opened_at=0.0, probe_at=0.0, reason="")


def after_probe_lease(circuit: Circuit, now: float) -> Circuit:
    """Lease the probe that is due: the next one is due an interval later. Unchanged if none is due."""
    if not circuit.is_open or _seconds_until(circuit.probe_at, now, PROBE_INTERVAL) > 0:
        return circuit
    return replace(circuit, probe_at=now + PROBE_INTERVAL)


def seconds_to_probe(circuit: Circuit, now: float) -> float:
    """Seconds until the next probe, for ``Retry-After``; at least 1."""
    return min(max(1.0, _seconds_until(circuit.probe_at, now, PROBE_INTERVAL)), PROBE_INTERVAL)


# --- limits ---


def after_limit(circuit: Circuit, scope: Scope, seconds: float, now: float) -> Circuit:
    """Record a 429 for requests of ``scope``, with a ``Retry-After`` of ``seconds``.

    A limit on tokens also applies to manifests, which need the tokens; one on blobs, which
    upstreams limit last, also applies to manifests. A storage host limits blobs alone.
    """
    until = now + min(seconds, WAIT_MAX)
    if scope == "storage":
        return replace(circuit, blobs_limited_until=_later(circuit.blobs_limited_until, until, now))
    manifests = _later(circuit.manifests_limited_until, until, now)
    if scope == "manifests":
        return replace(circuit, manifests_limited_until=manifests)
    if scope == "tokens":
        tokens = _later(circuit.tokens_limited_until, until, now)
        return replace(circuit, manifests_limited_until=manifests, tokens_limited_until=tokens)
    blobs = _later(circuit.blobs_limited_until, until, now)
    return replace(circuit, manifests_limited_until=manifests, blobs_limited_until=blobs)


def seconds_limited(circuit: Circuit, scope: Scope, now: float) -> float:
    """Seconds until requests of ``scope`` are allowed again; 0 if they are allowed."""
    until = {
        "manifests": circuit.manifests_limited_until,
        "blobs": circuit.blobs_limited_until,
        "storage": circuit.blobs_limited_until,
        "tokens": circuit.tokens_limited_until,
    }[scope]
    return _seconds_until(until, now, WAIT_MAX)


def after_quota(circuit: Circuit, limit: int, remaining: int, now: float) -> Circuit:
    """Record the quota that a response has reported."""
    return replace(circuit, limit=limit, remaining=remaining, seen_at=now)


def is_below_reserve(circuit: Circuit, reserve: int) -> bool:
    """Whether the remaining quota is known and smaller than ``reserve``."""
    return 0 <= circuit.remaining < reserve


def after_quota_refresh(circuit: Circuit, now: float) -> Circuit:
    """Lease the refresh of an old quota: the caller alone may send one request to learn it.

    Unchanged while the quota is recent.
    """
    if 0 <= now - circuit.seen_at <= QUOTA_MAX_AGE:
        return circuit
    return replace(circuit, seen_at=now)


def _seconds_until(moment: float, now: float, longest: float) -> float:
    seconds = moment - now
    return seconds if 0 < seconds <= longest + _ROUNDING else 0.0


def _later(recorded: float, until: float, now: float) -> float:
    """The later of two ends, unless the recorded one is past or impossible."""
    return max(recorded, until) if _seconds_until(recorded, now, WAIT_MAX) > 0 else until
