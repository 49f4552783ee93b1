"""What has to go so that there is room: least recently pulled first, and no more than helps."""

from __future__ import annotations

from typing import Any

import pytest

from regmirror.maintenance.eviction import Deficit, free_space_deficit, larger, plan_eviction, quota_deficit
from regmirror.metadata.records import Candidate
from regmirror.oci.names import Digest

BLOBS = [Candidate(Digest.of(bytes([number])), 10, float(number)) for number in range(10)]


def plan(need: Any, pinned: Any = ()) -> Any:
    return plan_eviction(iter(BLOBS), frozenset(pinned), need)


def test_the_least_recently_pulled_go_first_and_no_more_than_is_wanted() -> None:
    """B40."""
    assert plan(Deficit(15, 25)).evicted == tuple(BLOBS[:3])


def test_what_is_pinned_stays() -> None:
    """B40."""
    chosen = plan(Deficit(15, 15), pinned={BLOBS[0].digest, BLOBS[2].digest})
    assert chosen.evicted == (BLOBS[1], BLOBS[3])


def test_what_is_wanted_beyond_what_is_required_is_no_condition() -> None:
    assert plan(Deficit(100, 500)).evicted == tuple(BLOBS)


def test_nothing_goes_if_all_of_it_would_not_be_enough() -> None:
    chosen = plan(Deficit(101, 101))
    assert (chosen.evicted, chosen.is_enough) == ((), False)


def test_nothing_goes_for_what_can_never_fit() -> None:
    """A blob larger than the whole quota."""
    need = quota_deficit(used=50, more=101, limit=100)
    assert not need.is_possible
    assert plan(need).evicted == ()


def test_within_the_limit_nothing_is_needed() -> None:
    assert quota_deficit(used=50, more=50, limit=100) == Deficit(0, 0)
    assert plan(Deficit(0, 0)) == plan_eviction([], frozenset(), Deficit(0, 0))


def test_an_eviction_goes_on_below_the_limit() -> None:
    """Hysteresis: the next blob does not evict again at once."""
    assert quota_deficit(used=1_000, more=10, limit=1_000) == Deficit(10, 60)


@pytest.mark.parametrize(("free", "required"), [(200, 0), (150, 0), (149, 1), (0, 150)])
def test_free_space_is_left(free: Any, required: Any) -> None:
    assert free_space_deficit(free, more=50, min_free=100).required == required


def test_no_limit_needs_nothing() -> None:
    assert quota_deficit(10**12, 10**12, 0) == free_space_deficit(0, 10**12, 0) == Deficit(0, 0)


def test_two_needs_are_met_at_once() -> None:
    assert larger(Deficit(5, 50), Deficit(10, 20, is_possible=False)) == Deficit(10, 50, is_possible=False)
