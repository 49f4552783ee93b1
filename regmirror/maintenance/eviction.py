"""What has to go so that there is room: a plain function of what is stored.

Least recently pulled first; what is pinned stays. Eviction goes on below the limit, down to
``LOW``, so that the next blob does not evict again at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from regmirror.metadata.records import Candidate
from regmirror.oci.names import Digest

LOW: Final = 0.95  # of the limit: how far an eviction goes down


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes, in this order; whether that is enough for ``required`` bytes."""

    evicted: tuple[Candidate, ...]
    is_enough: bool

    @property
    def bytes(self) -> int:
        return sum(item.size for item in self.evicted)


@dataclass(frozen=True, slots=True)
class Deficit:
    """Bytes that must be freed for what is wanted now, and that it is sensible to free.

    ``is_possible`` is false if even an empty store would have no room.
    """

    required: int
    wanted: int
    is_possible: bool = True


NOTHING: Final = Deficit(0, 0)


def need_for_quota(used: int, more: int, limit: int) -> Deficit:
    """What ``more`` bytes need in a store that uses ``used`` of ``limit`` (0: unlimited)."""
    if limit <= 0:
        return NOTHING
    required = used + more - limit
    wanted = used + more - int(limit * LOW) if required > 0 else 0
    return Deficit(max(0, required), max(0, wanted), more <= limit)


def need_for_free_space(free: int, more: int, min_free: int) -> Deficit:
    """What ``more`` bytes need on a file system with ``free`` bytes, of which some are to stay."""
    if min_free <= 0:
        return NOTHING
    required = min_free + more - free
    return Deficit(max(0, required), max(0, required) and required + min_free // 20)


def larger(one: Deficit, other: Deficit) -> Deficit:
    """Both needs at once: the same bytes serve either."""
    return Deficit(
        max(one.required, other.required),
        max(one.wanted, other.wanted),
        one.is_possible and other.is_possible,
    )


def plan_eviction(candidates: Iterable[Candidate], pinned: frozenset[Digest], need: Deficit) -> Plan:
    """Choose from ``candidates``, which come least recently pulled first, until enough is freed.

    Looks at no more of them than it must. If all of them together are not enough for what is
    required, nothing goes: it would not help.
    """
    chosen: list[Candidate] = []
    freed = 0
    if not need.is_possible:
        return Plan((), is_enough=False)
    for candidate in candidates if need.wanted > 0 else ():
        if candidate.digest in pinned:
            continue
        chosen.append(candidate)
        freed += candidate.size
        if freed >= need.wanted:
            break
    is_enough = freed >= need.required
    return Plan(tuple(chosen) if is_enough else (), is_enough)
