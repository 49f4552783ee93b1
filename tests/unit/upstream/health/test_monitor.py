"""What processes share of an upstream's health, and what each makes of it."""

import asyncio
import fcntl
import json
import os

import pytest

from regmirror.config.schema import Upstream
from regmirror.errors import UpstreamCircuitOpen, UpstreamRateLimited
from regmirror.telemetry.events import CircuitChanged
from regmirror.upstream.health.circuit import Circuit, after_failure, after_limit
from regmirror.upstream.health.monitor import GLANCE, Health
from regmirror.upstream.health.prober import Prober
from regmirror.upstream.health.shared_state import SharedState, fingerprint
from regmirror.upstream.limiter import ConnectionLimiter

NAME = "registry.test:5000"
CONFIG = Upstream(url="https://registry.test:5000", username="ann")


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "upstreams"


@pytest.fixture
def record(directory):
    records = []

    def make(config=CONFIG, where=directory):
        records.append(SharedState.of(where, NAME, config))
        return records[-1]

    yield make
    for made in records:
        made.close()


def limited(known):
    return after_limit(known, "manifests", 60, 1000.0)


def file_of(directory):
    (path,) = directory.iterdir()
    return path


# --- the record ---


def test_what_one_process_writes_another_reads(record):
    """B30: and one that starts later, too."""
    first, second = record(), record()
    assert second.read() == Circuit()
    first.change(limited)
    assert second.read() == record().read() == limited(Circuit())


def test_nothing_is_written_while_nothing_changes(record, directory):
    assert record().change(lambda known: known) == (Circuit(), Circuit())
    assert file_of(directory).read_bytes() == b""


def test_the_name_of_the_upstream_is_a_safe_file_name(directory):
    made = SharedState.of(directory, "../evil/host:1", CONFIG)
    made.change(limited)
    made.close()
    assert file_of(directory).name == "..%2Fevil%2Fhost%3A1.json"


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\0" * 100,
        b"{",
        b"[1]\n",
        b'{"failures": 3}\n',
        b"\xff\xfe\n",
        b"[" * 100_000,
    ],
)
def test_garbage_is_a_fresh_start(record, directory, garbage):
    """B35: nobody waits because a file is broken; the next change mends it."""
    directory.mkdir()
    (directory / "registry.test%3A5000.json").write_bytes(garbage)
    assert record().read() == Circuit()
    record().change(limited)
    assert record().read() == limited(Circuit())


@pytest.mark.parametrize(
    ("key", "value"),
    [("failures", "3"), ("opened_at", "now"), ("opened_at", float("inf")), ("reason", 1), ("limit", True)],
)
def test_values_of_another_kind_are_garbage(record, directory, key, value):
    record().change(limited)
    path = file_of(directory)
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}) + "\n")
    assert record().read() == Circuit()


@pytest.mark.parametrize(
    "changed", [{"username": "bob"}, {"url": "https://other.test"}, {"password_file": "x"}]
)
def test_another_credential_is_another_record(record, changed):
    """B30: what the one may not ask, the other may."""
    record().change(limited)
    assert record(CONFIG.model_copy(update=changed)).read() == Circuit()


def test_no_password_is_in_the_record(record, directory):
    """B62: not even as a hash."""
    secret = Upstream(url=CONFIG.url, username="ann", password="hunter2")
    assert fingerprint(NAME, secret) == fingerprint(NAME, CONFIG)
    record(secret).change(limited)
    assert b"hunter2" not in file_of(directory).read_bytes()


def test_a_storage_that_cannot_be_written_keeps_it_in_the_process(record, tmp_path):
    """B44: the upstream is spared nevertheless."""
    (tmp_path / "file").write_bytes(b"")
    mine = record(where=tmp_path / "file" / "upstreams")
    mine.change(limited)
    mine.change(lambda known: after_failure(known, 1.0, 2.0, "dns"))
    assert (mine.read().manifests_limited_until, mine.read().failures) == (1060.0, 1)


def test_a_storage_that_can_be_written_again_learns_what_was_kept(record, tmp_path):
    (tmp_path / "upstreams").write_bytes(b"")
    mine = record(where=tmp_path / "upstreams")
    mine.change(limited)
    (tmp_path / "upstreams").unlink()
    mine.change(lambda known: known)
    assert record(where=tmp_path / "upstreams").read() == limited(Circuit())


def test_a_file_that_was_removed_is_made_again(record, directory):
    mine, other = record(), record()
    mine.change(limited)
    file_of(directory).unlink()
    mine.change(limited)
    assert other.read() == limited(Circuit())


def test_a_process_that_was_stopped_with_the_lock_stops_nobody(record, directory):
    """B35."""
    record().change(limited)
    holder = os.open(file_of(directory), os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    try:
        record().change(lambda known: after_failure(known, 1.0, 2.0, "dns"))
        assert record().read().failures == 1
    finally:
        os.close(holder)


def test_two_processes_that_change_it_both_count(record):
    """Read, decide, write under one lock."""
    first, second = record(), record()
    for number in range(10):
        for mine in (first, second):
            mine.change(lambda known, at=2.0 + number: after_failure(known, at, at, f"{at}"))
    assert first.read() == second.read()
    assert first.read().is_open


# --- health ---


class Bench:
    """Health on a clock of its own."""

    def __init__(self, record, **options):
        self.time, self.events, self.changes = 1000.0, [], []
        self.health = Health(
            "registry.test",
            record,
            emit=self.events.append,
            now=lambda: self.time,
            clock=lambda: self.time,
            changed=self.changes.append,
            **options,
        )

    def fail(self, times=1):
        for _ in range(times):
            self.time += 0.1
            self.health.note_failure(0.05, "refused")


@pytest.fixture
def bench(record):
    return Bench(record())


def test_each_process_tells_once_that_the_circuit_changed(record):
    """B33: by its own failures, or by what another process wrote."""
    first, second = Bench(record()), Bench(record())
    first.fail(5)
    second.time = first.time
    for _ in range(3):
        assert second.health.is_open()
    second.health.note_answer()
    first.health.is_open()
    opened, closed = CircuitChanged("registry.test", True, "refused"), CircuitChanged("registry.test", False)
    assert first.events == second.events == [opened, closed]
    assert first.changes == second.changes == [True, False]


def test_what_is_refused_and_why(bench):
    """B30, B34: a 429 with what is left of its time, an open circuit with the last reason."""
    assert bench.health.find_unavailability("manifests") is None
    bench.health.note_limit("manifests", 60)
    bench.time += 20
    trouble = bench.health.find_unavailability("manifests")
    assert isinstance(trouble, UpstreamRateLimited)
    assert trouble.retry_after == 40
    assert bench.health.find_unavailability("blobs") is None
    bench.fail(3)
    resting = bench.health.find_unavailability("blobs")
    assert isinstance(resting, UpstreamCircuitOpen)
    assert (resting.status, resting.retry_after) == (503, 5)
    assert "refused" in resting.message


def test_a_glance_looks_at_the_file_once_a_second(record):
    """B24: the hot path of a hit reads no file."""
    first, second = Bench(record()), Bench(record())
    assert second.health.cached_availability("blobs") is None
    first.fail(3)
    assert second.health.cached_availability("blobs") is None, "a moment ago all was well"
    second.time += GLANCE
    assert second.health.cached_availability("blobs") is not None


def test_slow_is_a_failure_only_without_a_sign_of_life(bench):
    """B35: an upstream that answers others is alive, however slow."""
    for _ in range(5):
        bench.time += 2
        bench.health.hear()
        bench.time += 1
        bench.health.note_slow(1.5)
    assert not bench.health.is_open()
    for _ in range(3):
        bench.time += 2
        bench.health.note_slow(1.5)
    assert bench.health.is_open()


def test_one_process_an_interval_makes_the_probe(record):
    """B33."""
    first, second = Bench(record()), Bench(record())
    first.fail(3)
    claims = []
    for _ in range(4):
        first.time = second.time = first.time + 2.5
        claims.append([first.health.claim_probe(), second.health.claim_probe()])
    assert claims == [[False, False], [True, False], [False, False], [True, False]]


def test_what_is_spared_for_the_reserve(record):
    """B31: said in words, and looked at again by one of all."""
    first, second = Bench(record(), reserve=10), Bench(record(), reserve=10)
    assert first.health.find_reserve_reason() is None
    first.health.note_allowance(100, 9)
    reason = second.health.find_reserve_reason()
    assert reason is not None
    assert "9 of 100" in reason
    first.time = second.time = first.time + 61
    assert first.health.find_reserve_reason() is None
    assert second.health.find_reserve_reason() == reason


async def test_probing_ends_when_the_circuit_is_closed(bench):
    """B33: with no client asking; a probe that hangs keeps no other from being made."""
    asked = asyncio.Event()
    hung = asyncio.Event()
    probes = []

    async def probe():
        probes.append(bench.time)
        if len(probes) == 1:
            await hung.wait()
        bench.health.note_answer()
        asked.set()

    bench.fail(3)
    probing = Prober(bench.health, probe)
    probing.start()
    bench.time += 5
    while not probes:
        await asyncio.sleep(0)
        bench.time += 0.001
    bench.time += 5
    async with asyncio.timeout(5):
        await asked.wait()
    await probing.close()
    assert len(probes) == 2
    assert not bench.health.is_open()


# --- slots ---


async def test_who_waits_for_a_slot_can_be_sent_away():
    """B34: and who has one keeps it."""
    slots = ConnectionLimiter(2)
    release = await slots.acquire(is_bulk=True)
    bulk = [asyncio.ensure_future(slots.acquire(is_bulk=True)) for _ in range(3)]
    await asyncio.sleep(0)
    slots.dismiss()
    found = await asyncio.gather(*bulk, return_exceptions=True)
    assert [type(item) for item in found] == [ConnectionLimiter.Dismissed] * 3
    release()
    (await slots.acquire(is_bulk=True))()
    assert (await slots.acquire(is_bulk=False)) is not None


async def test_a_slot_that_was_just_given_is_not_lost():
    """A dismissal at the very moment at which a slot becomes free."""
    slots = ConnectionLimiter(1)
    release = await slots.acquire(is_bulk=False)
    waiting = asyncio.ensure_future(slots.acquire(is_bulk=False))
    await asyncio.sleep(0)
    release()
    slots.dismiss()
    (found,) = await asyncio.gather(waiting, return_exceptions=True)
    if not isinstance(found, ConnectionLimiter.Dismissed):
        found()
    async with asyncio.timeout(5):
        assert await slots.acquire(is_bulk=False) is not None
