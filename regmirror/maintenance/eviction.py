"""Which content to evict: a pure function of what is stored and how much space is missing.

The least recently pulled goes first; pinned content stays. An eviction continues below the limit,
down to ``LOW``, so that the next blob does not cause another one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from regmirror.metadata.records import Candidate
from regmirror.oci.names import Digest

LOW: Final = 0.95  # of the limit, to which an eviction goes down


@dataclass(frozen=True, slots=True)
class Plan:
    """What to evict, in this order, and whether that frees the required bytes."""

    evicted: tuple[Candidate, ...]
    is_enough: bool

    @property
    def bytes(self) -> int:
        return sum(item.size for item in self.evicted)


@dataclass(frozen=True, slots=True)
class Deficit:
    """Bytes that must be freed (``required``), and bytes to free once an eviction begins (``wanted``).

    ``is_possible`` is False if even an empty store would not have the space.
    """

    required: int
    wanted: int
    is_possible: bool = True


NOTHING: Final = Deficit(0, 0)


def quota_deficit(used: int, more: int, limit: int) -> Deficit:
    """The deficit for ``more`` bytes in a store that uses ``used`` of ``limit`` bytes (0: unlimited)."""
    if limit <= 0:
        return NOTHING
    required = used + more - limit
    wanted = used + more - int(limit * LOW) if required > 0 else 0
    return Deficit(max(0, required), max(0, wanted), more <= limit)


def free_space_deficit(free: int, more: int, min_free: int) -> Deficit:
    """The deficit for ``more`` bytes on a file system with ``free`` bytes, of which ``min_free`` stay."""
    if min_free <= 0:
        return NOTHING
    required = min_free + more - free
    return Deficit(max(0, required), max(0, required) and required + min_free // 20)


def larger(one: Deficit, other: Deficit) -> Deficit:
    """The deficit that covers both: a freed byte counts for either."""
    return Deficit(
        max(one.required, other.required),
        max(one.wanted, other.wanted),
        one.is_possible and other.is_possible,
    )


def plan_eviction(candidates: Iterable[Candidate], pinned: frozenset[Digest], deficit: Deficit) -> Plan:
    """Choose from ``candidates``, the least recently pulled first, until enough is freed.

    Reads no more of them than necessary. The plan is empty if all of them together free less than
    the required bytes.
    """
    chosen: list[Candidate] = []
    freed = 0
    if not deficit.is_possible:
        return Plan((), is_enough=False)
    for candidate in candidates if deficit.wanted > 0 else ():
        if candidate.digest in pinned:
            continue
        chosen.append(candidate)
        freed += candidate.size
        if freed >= deficit.wanted:
            break
    is_enough = freed >= deficit.required
    return Plan(tuple(chosen) if is_enough else (), is_enough)
