"""The circuit and the rate limits of an upstream, without a clock."""

from dataclasses import replace
from typing import Any

import pytest

from regmirror.upstream.health.circuit import (
    OPENS_AFTER,
    PROBE_INTERVAL,
    QUOTA_MAX_AGE,
    WAIT_MAX,
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

NOW = 1_700_000_000.0
SCOPES: tuple[Scope, ...] = ("manifests", "blobs", "tokens")


WELL = Circuit()


def failed(times: Any, circuit: Circuit = WELL, now: float = NOW) -> Any:
    """After so many failures, each of a request that began after the one before had failed."""
    for number in range(times):
        circuit = after_failure(circuit, now + number, now + number + 0.5, "refused")
    return circuit


OPEN = failed(OPENS_AFTER)


def test_it_opens_after_failures_in_a_row() -> None:
    """B33: two are bad luck, three are an outage."""
    assert not failed(OPENS_AFTER - 1).is_open
    assert OPEN.is_open
    assert OPEN.reason == "refused"


def test_a_success_resets_failures() -> None:
    """B33: in a row means with no answer in between."""
    circuit = failed(1, after_success(failed(OPENS_AFTER - 1)))
    assert not circuit.is_open
    assert circuit.failures == 1


def test_a_success_closes_the_circuit_and_keeps_the_limits() -> None:
    """B33, B30: health and rate limits are independent."""
    circuit = after_success(after_limit(OPEN, "manifests", 60, NOW))
    assert not circuit.is_open
    assert circuit.failures == 0
    assert seconds_limited(circuit, "manifests", NOW) == 60


def test_a_success_without_failures_changes_nothing() -> None:
    """So that nothing is written then."""
    circuit = after_quota(Circuit(), 100, 50, NOW)
    assert after_success(circuit) is circuit


def test_simultaneous_failures_count_once() -> None:
    """B33: fifty connections that break at one moment are one failure."""
    circuit = after_failure(Circuit(), NOW, NOW + 2, "reset")
    for number in range(50):
        circuit = after_failure(circuit, NOW + number / 50, NOW + 2 + number / 50, "reset")
    assert circuit.failures == 1


def test_a_clock_that_was_set_back_does_not_hide_failures() -> None:
    circuit = after_failure(Circuit(), NOW + 9000, NOW + 9001, "reset")
    assert after_failure(circuit, NOW, NOW + 1, "reset").failures == 2


def test_one_probe_an_interval_is_claimed() -> None:
    """B33: the first an interval after it opened, and whoever comes next waits an interval again."""
    opened = OPEN.opened_at
    assert after_probe_lease(OPEN, opened + PROBE_INTERVAL - 0.1) is OPEN
    claimed = after_probe_lease(OPEN, opened + PROBE_INTERVAL)
    assert claimed is not OPEN
    assert after_probe_lease(claimed, opened + PROBE_INTERVAL + 0.1) is claimed
    assert after_probe_lease(claimed, opened + 2 * PROBE_INTERVAL) is not claimed


def test_a_failed_probe_leaves_it_open() -> None:
    claimed = after_probe_lease(OPEN, OPEN.opened_at + PROBE_INTERVAL)
    again = after_failure(claimed, claimed.probe_at - 4, claimed.probe_at - 3, "status-500")
    assert (again.is_open, again.opened_at, again.reason) == (True, OPEN.opened_at, "status-500")
    assert again.probe_at == claimed.probe_at


def test_nothing_is_claimed_while_it_is_closed() -> None:
    well = Circuit()
    assert after_probe_lease(well, NOW) is well


@pytest.mark.parametrize(("later", "seconds"), [(0, 5), (3, 2), (4.9, 1), (60, 1), (-7200, 1)])
def test_clients_are_told_when_to_come_back(later: float, seconds: int) -> None:
    """B34: at least a second, and never longer than an interval, whatever the clock did."""
    assert seconds_to_probe(OPEN, OPEN.opened_at + later) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("scope", "refused"),
    [
        ("manifests", {"manifests"}),
        ("tokens", {"manifests", "tokens"}),
        ("blobs", {"manifests", "blobs"}),
    ],
)
def test_a_limit_applies_to_its_scope(scope: Scope, refused: set[str]) -> None:
    """B30: pulls are counted by manifests; what limits even blobs limits everything."""
    circuit = after_limit(Circuit(), scope, 30, NOW)
    found = {kind for kind in SCOPES if seconds_limited(circuit, kind, NOW)}
    assert found == refused


def test_a_limit_has_an_end() -> None:
    """B30: until Retry-After, and no longer than the longest wait."""
    circuit = after_limit(Circuit(), "manifests", 30, NOW)
    assert seconds_limited(circuit, "manifests", NOW + 29) == 1
    assert seconds_limited(circuit, "manifests", NOW + 30) == 0
    assert seconds_limited(after_limit(circuit, "manifests", 1e9, NOW), "manifests", NOW) == WAIT_MAX


def test_the_longer_of_two_limits_counts() -> None:
    circuit = after_limit(after_limit(Circuit(), "manifests", 60, NOW), "manifests", 5, NOW + 1)
    assert seconds_limited(circuit, "manifests", NOW + 1) == 59


def test_a_limit_from_the_future_is_nonsense() -> None:
    """The clock was set back: nobody waits longer than the longest wait for that."""
    circuit = after_limit(Circuit(), "manifests", 60, NOW + 86400)
    assert seconds_limited(circuit, "manifests", NOW) == 0
    assert seconds_limited(after_limit(circuit, "manifests", 5, NOW), "manifests", NOW) == 5


@pytest.mark.parametrize(
    ("remaining", "reserve", "scarce"), [(9, 10, True), (10, 10, False), (0, 0, False), (-1, 10, False)]
)
def test_the_reserve(remaining: int, reserve: int, scarce: bool) -> None:
    """B31: -1 stands for an upstream that tells no limit."""
    assert is_below_reserve(replace(Circuit(), remaining=remaining), reserve) is scarce


def test_an_old_quota_is_refreshed_by_one_caller() -> None:
    seen = after_quota(Circuit(), 100, 3, NOW)
    assert after_quota_refresh(seen, NOW + QUOTA_MAX_AGE) is seen
    looked = after_quota_refresh(seen, NOW + QUOTA_MAX_AGE + 1)
    assert looked is not seen
    assert after_quota_refresh(looked, NOW + QUOTA_MAX_AGE + 2) is looked
    assert after_quota_refresh(seen, NOW - 10) is not seen, "the clock was set back"
