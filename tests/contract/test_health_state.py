"""What every store of an upstream's health state must do."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from regmirror.upstream.health.base import HealthStateStore, Transition
from regmirror.upstream.health.circuit import OPENS_AFTER, Circuit, after_failure, after_limit, after_success
from regmirror.upstream.health.shared_state import SharedState

Make = Callable[[], HealthStateStore]
NOW = 1_700_000_000.0


@pytest.fixture(params=["file", "memory"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Stores of one upstream, as several processes open them; those in memory share nothing."""
    path = tmp_path / "upstreams" / "registry.test.json" if request.param == "file" else None
    stores: list[HealthStateStore] = []

    def make() -> HealthStateStore:
        stores.append(SharedState(path, "identity"))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def failure_at(started: float) -> Transition:
    return lambda circuit: after_failure(circuit, started, started + 0.5, "refused")


def fail(store: HealthStateStore, times: int = 1) -> Circuit:
    """The circuit after failures one after the other."""
    for number in range(times):
        store.change(failure_at(NOW + number))
    return store.read()


def test_a_new_store_has_a_closed_circuit(make: Make) -> None:
    assert make().read() == Circuit()


def test_a_change_returns_the_circuits_before_and_after_it(make: Make) -> None:
    store = make()
    before, after = store.change(lambda circuit: after_limit(circuit, "manifests", 60, NOW))
    assert before == Circuit()
    assert after == store.read() == after_limit(Circuit(), "manifests", 60, NOW)


def test_a_transition_that_changes_nothing_returns_one_object(make: Make) -> None:
    store = make()
    fail(store)
    before, after = store.change(lambda circuit: circuit)
    assert before is after
    assert after == store.read()


def test_each_transition_starts_from_the_one_before(make: Make) -> None:
    """B33: failures are counted, and a success resets them."""
    store = make()
    assert fail(store, OPENS_AFTER).is_open
    store.change(after_success)
    assert store.read() == Circuit()


def test_changes_are_reported_and_reads_are_not(make: Make) -> None:
    """A replicator sees every change of this process, once."""
    store, reported = make(), list[Circuit]()
    store.on_change = reported.append
    store.read()
    store.change(lambda circuit: circuit)
    assert reported == []
    circuit = fail(store)
    assert reported == [circuit]


def test_a_closed_store_still_reads_and_changes(make: Make) -> None:
    """B35: a request that ends after its client was closed does not fail."""
    store = make()
    fail(store)
    store.close()
    store.close()
    store.change(lambda circuit: after_limit(circuit, "blobs", 60, NOW))
    assert store.read().blobs_limited_until == NOW + 60


def test_a_second_store_reads_changes_of_the_first(tmp_path: Path) -> None:
    """B30: only where they share a file."""
    first, second = (SharedState(tmp_path / "state.json", "identity") for _ in range(2))
    circuit = fail(first)
    assert second.read() == circuit
    assert second.change(lambda seen: seen)[0] == circuit
    first.close()
    second.close()
