"""When a worker does which task, and what it reports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from regmirror.maintenance import scheduler as module
from regmirror.maintenance.scheduler import RECONCILE_INTERVAL, MaintenanceScheduler
from regmirror.maintenance.scrub import TASK as SCRUB
from regmirror.maintenance.toolkit import limits_of
from regmirror.maintenance.turns import COLLECTION, EVICTION
from regmirror.metadata.cache import MetadataCache
from regmirror.metadata.inventory import MaintenanceRun
from regmirror.oci.names import Digest, Repository
from regmirror.telemetry.events import MaintenanceEnded
from tests.unit.maintenance.world import APP, TAG, World, config, flush_nothing

SECTIONS = {
    "gc": {"interval": "1h", "grace": "100s", "keep_untagged": "100s"},
    "scrub": {"interval": "1d", "rate": "0"},
    "storage": {"max_size": "0", "min_free": "0"},
}


async def no_repair(repository: Repository, digest: Digest) -> None:
    raise OSError("there is no upstream")


class Setup:
    def __init__(self, world: World) -> None:
        self.world = world
        self.cache = MetadataCache(world.metadata, world.events.append, missing_max_age=10)
        self.capacity = world.toolkit.capacity(config(**SECTIONS), flush_nothing)
        self.scheduler = MaintenanceScheduler(
            config(**SECTIONS), world.toolkit, self.capacity, self.cache, world.events.append
        )

    def ended(self) -> list[str]:
        return [event.what for event in self.world.events if isinstance(event, MaintenanceEnded)]


@pytest.fixture
async def setup(world: World) -> AsyncIterator[Setup]:
    setup = Setup(world)
    yield setup
    await setup.cache.close()


async def test_a_collection_is_done_once_per_interval(setup: Setup) -> None:
    await setup.scheduler.collect_if_due()
    await setup.scheduler.collect_if_due()
    assert setup.ended() == ["collection"]
    setup.world.time += 3600
    await setup.scheduler.collect_if_due()
    assert setup.ended() == ["collection"] * 2


async def test_a_clock_that_was_set_back_does_not_stop_collections(setup: Setup) -> None:
    await setup.world.toolkit.inventory.save_run(COLLECTION, MaintenanceRun(0, setup.world.time + 10_000))
    await setup.scheduler.collect_if_due()
    assert setup.ended() == ["collection"]


@pytest.mark.parametrize("task", [COLLECTION, EVICTION, SCRUB])
async def test_a_task_that_another_process_does_is_left_to_it(setup: Setup, task: str) -> None:
    """B40, B43, B47."""
    setup.world.time += 10 * 86_400
    await setup.world.toolkit.inventory.save_run(SCRUB, MaintenanceRun(1, 1))
    await setup.world.add_blob(b"blob")
    setup.capacity.limits = limits_of(config(storage={"max_size": "1"}))
    async with setup.world.toolkit.turns.try_turn(task):
        await setup.scheduler.tick()
        await setup.scheduler.scrub_if_due(no_repair)
    assert set(setup.ended()) == {"collection", "eviction", "scrub"} - {task}


async def test_servers_drop_their_caches_after_manifests_were_collected(setup: Setup) -> None:
    news: Any = setup.world.toolkit.news
    await setup.world.add_manifest("{}", tag=TAG)
    await setup.world.add_manifest("{ }", tag=TAG)
    setup.world.time += 3600
    await setup.scheduler.collect_if_due()
    assert news.has_changed()
    setup.world.time += 3600
    await setup.scheduler.collect_if_due()
    assert not news.has_changed()


async def test_files_and_rows_are_reconciled_once_a_day(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B42."""
    calls = []

    async def reconcile(*args: object) -> None:
        calls.append(1)

    monkeypatch.setattr("regmirror.maintenance.toolkit.reconcile", reconcile)
    for _ in range(3):
        setup.world.time += RECONCILE_INTERVAL / 2
        await setup.scheduler.collect_if_due()
    assert len(calls) == 2


@pytest.mark.parametrize("section", ["gc", "scrub"])
async def test_an_interval_of_0_turns_a_task_off(setup: Setup, section: str) -> None:
    await setup.world.toolkit.inventory.save_run(SCRUB, MaintenanceRun(1, 1))
    setup.scheduler.follow_config(config(**{**SECTIONS, section: {"interval": "0"}}))
    await setup.scheduler.collect_if_due()
    await setup.scheduler.scrub_if_due(no_repair)
    assert setup.ended() == (["scrub"] if section == "gc" else ["collection"])


async def test_a_new_store_is_scrubbed_after_one_interval(setup: Setup) -> None:
    """B47."""
    await setup.scheduler.scrub_if_due(no_repair)
    assert setup.ended() == []
    setup.world.time += 86_400
    await setup.scheduler.scrub_if_due(no_repair)
    assert setup.ended() == ["scrub"]


async def test_another_configuration_has_other_limits(setup: Setup) -> None:
    """B53."""
    digest = await setup.world.add_blob(b"blob")
    await setup.scheduler.tick()
    assert setup.world.toolkit.store.exists(digest)
    setup.scheduler.follow_config(config(**{**SECTIONS, "storage": {"max_size": "1", "min_free": "0"}}))
    await setup.scheduler.tick()
    assert not setup.world.toolkit.store.exists(digest)
    assert "eviction" in setup.ended()


async def test_a_lock_that_cannot_be_used_is_logged_once(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    """B47."""
    (setup.world.root / "eviction.lock").mkdir()
    for _ in range(2):
        await setup.scheduler.tick()
    (message,) = [record.getMessage() for record in caplog.records if "lock" in record.getMessage()]
    assert message.endswith("eviction.lock cannot be used: is a directory; check its owner")


async def test_a_database_that_fails_ends_a_tick_quietly(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """B44: it is reported where it happens."""

    async def fail() -> None:
        raise OperationalError("SELECT", {}, Exception("disk I/O error"))

    monkeypatch.setattr(setup.capacity, "enforce", fail)
    await setup.scheduler.tick()
    assert caplog.records == []


async def test_a_running_scheduler_works_follows_the_news_and_survives_defects(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug in one tick does not stop the next one."""
    monkeypatch.setattr(module, "TICK", 0.001)
    monkeypatch.setattr("regmirror.maintenance.news.POLL", 0.001)
    ticked, dropped, ticks = asyncio.Event(), asyncio.Event(), []

    async def tick() -> None:
        ticks.append(1)
        if len(ticks) == 1:
            raise ZeroDivisionError("on purpose")
        ticked.set()

    monkeypatch.setattr(setup.scheduler, "tick", tick)
    monkeypatch.setattr(setup.cache, "invalidate_all", dropped.set)
    async with asyncio.timeout(10), setup.scheduler.running(no_repair):
        await ticked.wait()
        setup.world.toolkit.news.publish()
        await dropped.wait()
    assert "on purpose" in caplog.text
    count = len(ticks)
    await asyncio.sleep(0.01)
    assert len(ticks) == count


async def test_last_pulls_are_written_with_each_tick(setup: Setup, tmp_path: Path) -> None:
    digest = await setup.world.add_blob(b"blob")
    await setup.world.add_manifest("{}", tag=TAG)
    setup.cache.note_blob_pull(digest)
    setup.cache.note_tag_pull(APP, TAG)
    await setup.scheduler.tick()
    assert (setup.cache._pulled_blobs, setup.cache._pulled_tags) == ({}, {})
