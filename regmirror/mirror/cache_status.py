"""How a request was answered, as metrics count it and as ``Cache-Status`` (RFC 9211) says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from regmirror.telemetry.events import Result

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outcome:
    result: Result
    cache_status: str


HIT: Final = Outcome("hit", "regmirror; hit")
STALE: Final = Outcome("stale", "regmirror; hit; detail=stale")
MISS: Final = Outcome("miss", "regmirror; fwd=miss")
STORED: Final = Outcome("miss", "regmirror; fwd=miss; stored")
COALESCED: Final = Outcome("coalesced", "regmirror; fwd=miss; collapsed")
REVALIDATED: Final = Outcome("revalidated", "regmirror; fwd=stale; fwd-status=200")
CHANGED: Final = Outcome("miss", "regmirror; fwd=stale; fwd-status=200; stored")


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What was asked for, how it was come by, and a warning for whoever reads headers."""

    content: T
    outcome: Outcome
    warning: str = ""
