"""The health of one upstream as one client sees it: availability, outcomes and activity.

The circuit is shared with every other process of the storage through a HealthStateStore; the
decisions are those of ``circuit``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final
from weakref import WeakValueDictionary

from regmirror.errors import (
    UpstreamCircuitOpen,
    UpstreamDenied,
    UpstreamError,
    UpstreamFailed,
    UpstreamRateLimited,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from regmirror.telemetry.events import CircuitChanged, Emit, Kind
from regmirror.upstream.health.base import HealthStateStore, Transition
from regmirror.upstream.health.circuit import (
    Circuit,
    Scope,
    after_failure,
    after_limit,
    after_probe_lease,
    after_quota,
    after_quota_refresh,
    after_success,
    is_below_reserve,
    seconds_limited,
    seconds_to_probe,
)

CACHED_MAX_AGE: Final = 1.0  # seconds that ``cached_unavailability`` uses one read of the store
#: Statuses of 500 and above that are about the request and not about the upstream's health.
_REQUEST_ERRORS: Final = (501, 505)
#: Reasons of errors that this process caused itself.
_LOCAL_REASONS: Final = ("offline", "closed")
#: Reasons of UpstreamFailed that mean no usable response came from the upstream or its token endpoint.
_BROKEN_REASONS: Final = ("token", "protocol", "truncated")


class RequestActivity:
    """When a part of a response last arrived for one subject, by the clock of event loops."""

    def __init__(self) -> None:
        self.last_at = -math.inf


class ActivityMonitor:
    """The activity of one upstream's requests, by repository and tag, digest or list.

    Only subjects that are being watched are stored.
    """

    def __init__(self) -> None:
        self._watched: WeakValueDictionary[tuple[str, str], RequestActivity] = WeakValueDictionary()

    def watch(self, repository: str, subject: str) -> RequestActivity:
        """The activity of a subject, kept up to date while the caller references it."""
        activity = self._watched.get((repository, subject))
        if activity is None:
            activity = self._watched[repository, subject] = RequestActivity()
        return activity

    def note(self, repository: str, subject: str) -> None:
        """Record that a part of a response arrived for a subject."""
        activity = self._watched.get((repository, subject))
        if activity is not None:
            activity.last_at = time.monotonic()


class Health:
    """Whether one upstream may be contacted, and what its responses say of it.

    ``now`` is the wall clock, ``clock`` monotonic; ``changed`` is called with True when this
    process notices that the circuit opened, with False when it closed.
    """

    def __init__(
        self,
        name: str,
        store: HealthStateStore,
        *,
        emit: Emit,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        reserve: int = 0,
        changed: Callable[[bool], None] = lambda is_open: None,
    ) -> None:
        self._name, self._store, self._emit = name, store, emit
        self._now, self._clock, self._reserve, self._changed = now, clock, reserve, changed
        self._last, self._was_open = Circuit(), False
        self._is_restricted = False  # whether ``_last`` may reject a request
        self._read_at = -CACHED_MAX_AGE
        self._active_at = -math.inf
        self.activity = ActivityMonitor()

    def close(self) -> None:
        self._store.close()

    # --- availability ---

    def is_open(self) -> bool:
        """Whether the circuit is open at this moment."""
        return self._read().is_open

    def find_open_circuit(self) -> UpstreamCircuitOpen | None:
        """The error for every request while the circuit is open."""
        circuit = self._read()
        return self._open_error(circuit) if self._was_open else None

    def find_unavailability(self, scope: Scope) -> UpstreamError | None:
        """The error for requests of ``scope``, while the circuit is open or a 429 applies."""
        return self._unavailability(self._read(), scope)

    def is_limited(self, scope: Scope) -> bool:
        """Whether a 429 on requests of this scope applies."""
        return seconds_limited(self._read(), scope, self._now()) > 0

    def cached_unavailability(self, scope: Scope) -> UpstreamError | None:
        """``find_unavailability`` by a read of the last second, for the path of a hit."""
        if self._clock() - self._read_at < CACHED_MAX_AGE:
            return self._unavailability(self._last, scope) if self._is_restricted else None
        return self.find_unavailability(scope)

    def find_reserve_reason(self) -> str | None:
        """Why a cached tag is not revalidated: the remaining quota is below the reserve.

        At intervals one caller gets None all the same, so that its request refreshes the quota.
        """
        circuit = self._read()
        if not is_below_reserve(circuit, self._reserve):
            return None
        before, after = self._change(lambda stored: after_quota_refresh(stored, self._now()))
        if after is not before or not is_below_reserve(after, self._reserve):
            return None
        left = f"{after.remaining} of {after.limit} left"
        return f"{self._name}: rate limit almost exhausted ({left}): not revalidated"

    def _open_error(self, circuit: Circuit) -> UpstreamCircuitOpen:
        wait = seconds_to_probe(circuit, self._now())
        message = f"is not contacted until a probe succeeds, because it keeps failing ({circuit.reason})"
        return UpstreamCircuitOpen(self._name, message, reason="circuit-open", retry_after=wait)

    def _unavailability(self, circuit: Circuit, scope: Scope) -> UpstreamError | None:
        if self._was_open:
            return self._open_error(circuit)
        wait = seconds_limited(circuit, scope, self._now())
        if wait > 0:
            message = f"limits the rate of requests; the next one is allowed in {wait:.0f} s"
            return UpstreamRateLimited(self._name, message, reason="rate-limit", retry_after=wait)
        return None

    # --- outcomes ---

    def note_activity(self, repository: str, subject: str, *, is_upstream: bool) -> None:
        """Record that a part of a response arrived. Another host's says nothing of the upstream."""
        self.activity.note(repository, subject)
        if is_upstream:
            self._active_at = self._clock()

    def note_token_activity(self) -> None:
        """Record that the token endpoint, which counts as the upstream itself, has responded."""
        self._active_at = self._clock()

    def was_active_within(self, seconds: float) -> bool:
        """Whether a part of any response came from the upstream itself in the last ``seconds``."""
        return self._clock() - self._active_at <= seconds

    def note_status(self, status: int, seconds: float, *, is_upstream: bool) -> bool:
        """Record a response's status after ``seconds``; returns whether it counts as a failure."""
        if is_upstream and status >= 500 and status not in _REQUEST_ERRORS:
            self.note_failure(seconds, f"status-{status}")
            return True
        self.note_success()
        return False

    def note_error(self, error: UpstreamError, seconds: float) -> bool:
        """Record an error raised instead of a response; returns whether it counts as a failure."""
        if _is_failure(error):
            self.note_failure(seconds, error.reason)
            return True
        if error.is_elsewhere or isinstance(error, UpstreamDenied):
            self.note_success()  # the upstream responded by a redirect or a rejection
        return False

    def note_success(self) -> None:
        """Record a response of the upstream that is not a failure."""
        circuit = self._read()
        if circuit.failures or self._was_open:
            self._change(after_success)

    def note_failure(self, seconds: float, reason: str) -> None:
        """Record the failure of a request that started ``seconds`` ago."""
        now = self._now()
        self._change(lambda stored: after_failure(stored, now - seconds, now, reason))

    def note_slow(self, seconds: float) -> None:
        """Record that a client stopped waiting: a failure, unless the upstream was active meanwhile."""
        if not self.was_active_within(seconds):
            self.note_failure(seconds, "slow")

    def note_limit(self, scope: Scope, seconds: float) -> None:
        """Record a 429 with a ``Retry-After`` of ``seconds``."""
        self._change(lambda stored: after_limit(stored, scope, seconds, self._now()))

    def note_quota(self, limit: int, remaining: int) -> None:
        """Record the quota that a response has reported."""
        self._change(lambda stored: after_quota(stored, limit, remaining, self._now()))

    def lease_probe(self) -> bool:
        """Whether a probe is due and this caller has to make it."""
        before, after = self._change(lambda stored: after_probe_lease(stored, self._now()))
        return after is not before

    # --- the store ---

    def _read(self) -> Circuit:
        return self._observe(self._store.read())

    def _change(self, transition: Transition) -> tuple[Circuit, Circuit]:
        before, after = self._store.change(transition)
        self._observe(after)
        return before, after

    def _observe(self, circuit: Circuit) -> Circuit:
        """Cache the circuit, and report when it has opened or closed since the last read."""
        self._last, self._read_at = circuit, self._clock()
        limited_until = circuit.manifests_limited_until + circuit.blobs_limited_until
        self._is_restricted = circuit.is_open or limited_until > 0
        was_open, self._was_open = self._was_open, circuit.is_open
        if self._was_open != was_open:
            self._emit(CircuitChanged(self._name, self._was_open, circuit.reason))
            self._changed(self._was_open)
        return circuit


def scope_of(kind: Kind) -> Scope:
    """The scope of rate limits that requests of this kind belong to."""
    return "blobs" if kind == "blob" else "manifests"


def _is_failure(error: UpstreamError) -> bool:
    if error.is_elsewhere or error.reason in _LOCAL_REASONS:
        return False
    if isinstance(error, UpstreamTimeout | UpstreamUnreachable):
        return True
    return isinstance(error, UpstreamFailed) and error.reason in _BROKEN_REASONS
