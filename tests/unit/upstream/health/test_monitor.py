"""The availability of an upstream, and what its responses change."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regmirror.config.schema import Upstream
from regmirror.errors import UpstreamCircuitOpen, UpstreamRateLimited
from regmirror.telemetry.events import CircuitChanged
from regmirror.upstream.health.monitor import CACHED_MAX_AGE
from regmirror.upstream.health.shared_state import SharedState
from tests.unit.upstream.health.bench import Bench


@pytest.fixture
def record(tmp_path: Path) -> Any:
    stores = []

    def make() -> Any:
        stores.append(SharedState.of(tmp_path / "upstreams", "registry.test", Upstream()))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def bench(record: Callable[..., SharedState]) -> Any:
    return Bench(record())


def test_each_process_reports_once_that_the_circuit_changed(record: Callable[..., SharedState]) -> None:
    """B33: by its own failures, or by what another process wrote."""
    first, second = Bench(record()), Bench(record())
    first.fail(5)
    second.time = first.time
    for _ in range(3):
        assert second.health.is_open()
    second.health.note_success()
    first.health.is_open()
    opened, closed = CircuitChanged("registry.test", True, "refused"), CircuitChanged("registry.test", False)
    assert first.events == second.events == [opened, closed]
    assert first.changes == second.changes == [True, False]


def test_unavailability_has_a_reason_and_a_time(bench: Bench) -> None:
    """B30, B34: a 429 with what is left of its time, an open circuit with the last reason."""
    assert bench.health.find_unavailability("manifests") is None
    bench.health.note_limit("manifests", 60)
    bench.time += 20
    unavailability = bench.health.find_unavailability("manifests")
    assert isinstance(unavailability, UpstreamRateLimited)
    assert unavailability.retry_after == 40
    assert bench.health.find_unavailability("blobs") is None
    bench.fail(3)
    open_error = bench.health.find_unavailability("blobs")
    assert isinstance(open_error, UpstreamCircuitOpen)
    assert (open_error.status, open_error.retry_after) == (503, 5)
    assert "refused" in open_error.message


def test_cached_availability_reads_the_file_once_a_second(record: Callable[..., SharedState]) -> None:
    """B24: the hot path of a hit reads no file."""
    first, second = Bench(record()), Bench(record())
    assert second.health.cached_unavailability("blobs") is None
    first.fail(3)
    assert second.health.cached_unavailability("blobs") is None, "the read of a moment ago is used"
    second.time += CACHED_MAX_AGE
    assert second.health.cached_unavailability("blobs") is not None


def test_slowness_is_a_failure_only_without_activity(bench: Bench) -> None:
    """B35: an upstream that answers others is alive, however slow."""
    for _ in range(5):
        bench.time += 2
        bench.health.note_activity("a", "1", is_upstream=True)
        bench.time += 1
        bench.health.note_slow(1.5)
    assert not bench.health.is_open()
    for _ in range(3):
        bench.time += 2
        bench.health.note_slow(1.5)
    assert bench.health.is_open()


def test_one_process_an_interval_makes_the_probe(record: Callable[..., SharedState]) -> None:
    """B33."""
    first, second = Bench(record()), Bench(record())
    first.fail(3)
    claims = []
    for _ in range(4):
        first.time = second.time = first.time + 2.5
        claims.append([first.health.lease_probe(), second.health.lease_probe()])
    assert claims == [[False, False], [True, False], [False, False], [True, False]]


def test_a_quota_below_the_reserve_stops_revalidation(record: Callable[..., SharedState]) -> None:
    """B31: with a reason, and refreshed by one process."""
    first, second = Bench(record(), reserve=10), Bench(record(), reserve=10)
    assert first.health.find_reserve_reason() is None
    first.health.note_quota(100, 9)
    reason = second.health.find_reserve_reason()
    assert reason is not None
    assert "9 of 100" in reason
    first.time = second.time = first.time + 61
    assert first.health.find_reserve_reason() is None
    assert second.health.find_reserve_reason() == reason
