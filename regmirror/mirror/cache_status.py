"""How a request was answered, as metrics count it and as ``Cache-Status`` (RFC 9211) says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from regmirror.telemetry.events import Result

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CacheStatus:
    result: Result
    header: str


HIT: Final = CacheStatus("hit", "regmirror; hit")
STALE: Final = CacheStatus("stale", "regmirror; hit; detail=stale")
MISS: Final = CacheStatus("miss", "regmirror; fwd=miss")
STORED: Final = CacheStatus("miss", "regmirror; fwd=miss; stored")
COALESCED: Final = CacheStatus("coalesced", "regmirror; fwd=miss; collapsed")
REVALIDATED: Final = CacheStatus("revalidated", "regmirror; fwd=stale; fwd-status=200")
CHANGED: Final = CacheStatus("miss", "regmirror; fwd=stale; fwd-status=200; stored")


@dataclass(frozen=True, slots=True)
class CachedResult(Generic[T]):
    """What was asked for, how it was come by, and a warning for whoever reads headers."""

    content: T
    cache_status: CacheStatus
    warning: str = ""
