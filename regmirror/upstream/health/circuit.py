"""When an upstream is left alone: it keeps failing, or it has said how long to wait.

What is known of one upstream is a frozen value, and what happens makes another value of it.
Times are wall-clock seconds, since several processes share them and they outlive a restart. A
time that lies further ahead than anything here can have set it counts as past: then the clock
was set back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

OPENS_AFTER: Final = 3  # failures in a row
PROBE_INTERVAL: Final = 5.0  # seconds between two probes, of all processes together
WAIT_MAX: Final = 3600.0  # seconds; whatever an upstream says, it is asked again after that
ALLOWANCE_MAX_AGE: Final = 60.0  # seconds that what is left of a rate limit is believed
_ROUNDING: Final = 1.0  # seconds; a sum of two times may come out a little larger

#: What a 429 is about: manifests and lists, blobs, or tokens.
Scope = Literal["manifests", "blobs", "tokens", "storage"]


@dataclass(frozen=True, slots=True)
class Circuit:
    """What is known of one upstream, as reached with one credential.

    It is open from ``opened_at`` on if that is not 0; ``reason`` is the last failure's.
    ``limit`` and ``remaining`` are -1 as long as the upstream has not told them (``seen_at``).
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
    """A request that ``began`` then has failed ``now``.

    Requests that were in the air when an earlier failure was counted tell nothing new: what
    breaks fifty connections at once has happened once.
    """
    if began < circuit.failed_at <= now:
        return circuit
    failures = min(circuit.failures + 1, OPENS_AFTER)
    failed = replace(circuit, failures=failures, failed_at=now, reason=reason)
    if circuit.is_open or failures < OPENS_AFTER:
        return failed
    return replace(failed, opened_at=now, probe_at=now + PROBE_INTERVAL)


def after_answer(circuit: Circuit) -> Circuit:
    """The upstream has answered: it is well, whatever was before."""
    if not circuit.failures and not circuit.is_open:
        return circuit
    return replace(circuit, failures=0, failed_at=0.0, opened_at=0.0, probe_at=0.0, reason="")


def after_claim(circuit: Circuit, now: float) -> Circuit:
    """The same if no probe is due; else with the next one an interval away: this one is claimed."""
    if not circuit.is_open or _seconds_until(circuit.probe_at, now, PROBE_INTERVAL) > 0:
        return circuit
    return replace(circuit, probe_at=now + PROBE_INTERVAL)


def seconds_to_probe(circuit: Circuit, now: float) -> float:
    """When to try again, for clients that are refused; at least 1."""
    rest = _seconds_until(circuit.probe_at, now, PROBE_INTERVAL)
    return min(max(1.0, rest), PROBE_INTERVAL)


# --- limits ---


def after_limit(circuit: Circuit, scope: Scope, seconds: float, now: float) -> Circuit:
    """The upstream has answered 429 and wants to be left alone for so many seconds.

    A limit on tokens holds for the manifests that they are for; one on blobs, which upstreams
    limit last, holds for everything. A host of the upstream's storage limits blobs alone.
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
    """How long nothing of this kind may be asked; 0 if it may."""
    until = {
        "manifests": circuit.manifests_limited_until,
        "blobs": circuit.blobs_limited_until,
        "storage": circuit.blobs_limited_until,
        "tokens": circuit.tokens_limited_until,
    }[scope]
    return _seconds_until(until, now, WAIT_MAX)


def after_allowance(circuit: Circuit, limit: int, remaining: int, now: float) -> Circuit:
    """The upstream has told what it allows and what is left of that."""
    return replace(circuit, limit=limit, remaining=remaining, seen_at=now)


def is_scarce(circuit: Circuit, reserve: int) -> bool:
    """Whether fewer requests than the ``reserve`` were left when the upstream last told."""
    return 0 <= circuit.remaining < reserve


def after_look(circuit: Circuit, now: float) -> Circuit:
    """The same while what is left is known; else as if it had been seen now, so that the one
    request which made this claim may look again, and no others with it.
    """
    if 0 <= now - circuit.seen_at <= ALLOWANCE_MAX_AGE:
        return circuit
    return replace(circuit, seen_at=now)


def _seconds_until(moment: float, now: float, longest: float) -> float:
    rest = moment - now
    return rest if 0 < rest <= longest + _ROUNDING else 0.0


def _later(known: float, said: float, now: float) -> float:
    """The later of two ends, unless the known one is nonsense."""
    return max(known, said) if _seconds_until(known, now, WAIT_MAX) > 0 else said
