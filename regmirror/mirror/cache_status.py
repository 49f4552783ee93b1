"""How a response was produced: the label in metrics and the ``Cache-Status`` header (RFC 9211)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from regmirror.telemetry.events import Result

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CacheStatus:
    """``result`` is the label in metrics, ``header`` the value of ``Cache-Status``."""

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
    """Requested content and its cache status; ``warning`` is the text of the ``Warning`` header, if any."""

    content: T
    cache_status: CacheStatus
    warning: str = ""
