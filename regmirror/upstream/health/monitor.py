"""Whether an upstream may be asked: what its answers and failures say, and who is told.

A client has one of these. What it knows it shares with every other process of the storage
through ``records``; what follows from it is decided in ``circuit``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

from regmirror.errors import UpstreamCircuitOpen, UpstreamError, UpstreamRateLimited
from regmirror.telemetry.events import CircuitChanged, Emit, Kind
from regmirror.upstream.health.activity import ActivityMonitor
from regmirror.upstream.health.circuit import (
    Circuit,
    Scope,
    after_allowance,
    after_answer,
    after_claim,
    after_failure,
    after_limit,
    after_look,
    is_scarce,
    seconds_limited,
    seconds_to_probe,
)
from regmirror.upstream.health.shared_state import SharedState, Transition

GLANCE: Final = 1.0  # seconds that a glance may be old


def scope_of(kind: Kind) -> Scope:
    """What a limit on requests of this kind is called."""
    return "blobs" if kind == "blob" else "manifests"


class Health:
    """``now`` is the wall clock, ``clock`` monotonic; ``changed`` is told when the circuit opens
    (True) or closes, as far as this process notices.
    """

    def __init__(
        self,
        name: str,
        record: SharedState,
        *,
        emit: Emit,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        reserve: int = 0,
        changed: Callable[[bool], None] = lambda is_open: None,
    ) -> None:
        self._name, self._record, self._emit = name, record, emit
        self._now, self._clock, self._reserve, self._changed = now, clock, reserve, changed
        self._last = Circuit()
        self._is_restricted = False  # whether ``_last`` may keep a request from being made
        self._looked_at = -GLANCE
        self._heard_at = -math.inf
        self.signs = ActivityMonitor()

    def close(self) -> None:
        self._record.close()

    # --- may it be asked? ---

    def is_open(self) -> bool:
        """Whether the circuit is open at this moment."""
        return self._read().is_open

    def find_open_circuit(self) -> UpstreamCircuitOpen | None:
        """Why nothing at all may be asked now, if that is so."""
        return self._rest(self._read())

    def find_unavailability(self, scope: Scope) -> UpstreamError | None:
        """Why nothing of this kind may be asked now, if that is so."""
        return self._trouble(self._read(), scope)

    def is_limited(self, scope: Scope) -> bool:
        """Whether a 429 on requests of this kind is in force."""
        return seconds_limited(self._read(), scope, self._now()) > 0

    def cached_availability(self, scope: Scope) -> UpstreamError | None:
        """The same without a look at the file if there was one a moment ago: for the hot path."""
        if self._clock() - self._looked_at < GLANCE:
            return self._trouble(self._last, scope) if self._is_restricted else None
        return self.find_unavailability(scope)

    def find_reserve_reason(self) -> str | None:
        """Why a tag that is cached should not be asked for, if so little is left of the limit.

        Now and then one caller is told None nevertheless, so that it learns what is left.
        """
        circuit = self._read()
        if not is_scarce(circuit, self._reserve):
            return None
        before, after = self._change(lambda known: after_look(known, self._now()))
        if after is not before or not is_scarce(after, self._reserve):
            return None
        left = f"{after.remaining} of {after.limit}"
        return f"{self._name}: is not asked, because of its rate limit only {left} requests are left"

    def _rest(self, circuit: Circuit) -> UpstreamCircuitOpen | None:
        if not circuit.is_open:
            return None
        wait = seconds_to_probe(circuit, self._now())
        message = f"is not asked for a moment, because it keeps failing ({circuit.reason})"
        return UpstreamCircuitOpen(self._name, message, reason="circuit-open", retry_after=wait)

    def _trouble(self, circuit: Circuit, scope: Scope) -> UpstreamError | None:
        if resting := self._rest(circuit):
            return resting
        wait = seconds_limited(circuit, scope, self._now())
        if wait > 0:
            message = f"limits the rate of requests; it may be asked again in {wait:.0f} s"
            return UpstreamRateLimited(self._name, message, reason="rate-limit", retry_after=wait)
        return None

    # --- what happened ---

    def hear(self) -> None:
        """A sign of life: something came from the upstream."""
        self._heard_at = self._clock()

    def has_answered_within(self, seconds: float) -> bool:
        return self._clock() - self._heard_at <= seconds

    def note_answer(self) -> None:
        """The upstream itself has answered a request, and not that it is broken."""
        known = self._read()
        if known.failures or known.is_open:
            self._change(after_answer)

    def note_failure(self, seconds: float, reason: str) -> None:
        """A request that began ``seconds`` ago has failed, or is not worth waiting for any more."""
        now = self._now()
        self._change(lambda known: after_failure(known, now - seconds, now, reason))

    def note_slow(self, seconds: float) -> None:
        """Somebody has waited so long and waits no more: if nothing came, it is a failure."""
        if not self.has_answered_within(seconds):
            self.note_failure(seconds, "slow")

    def note_limit(self, scope: Scope, seconds: float) -> None:
        self._change(lambda known: after_limit(known, scope, seconds, self._now()))

    def note_allowance(self, limit: int, remaining: int) -> None:
        self._change(lambda known: after_allowance(known, limit, remaining, self._now()))

    def claim_probe(self) -> bool:
        """Whether a probe is due, and this caller the one to make it."""
        before, after = self._change(lambda known: after_claim(known, self._now()))
        return after is not before

    # --- the record ---

    def _read(self) -> Circuit:
        return self._notice(self._record.read())

    def _change(self, transition: Transition) -> tuple[Circuit, Circuit]:
        before, after = self._record.change(transition)
        self._notice(after)
        return before, after

    def _notice(self, circuit: Circuit) -> Circuit:
        was_open, self._last, self._looked_at = self._last.is_open, circuit, self._clock()
        self._is_restricted = (
            circuit.is_open or circuit.manifests_limited_until + circuit.blobs_limited_until > 0
        )
        if circuit.is_open != was_open:
            self._emit(CircuitChanged(self._name, circuit.is_open, circuit.reason))
            self._changed(circuit.is_open)
        return circuit
