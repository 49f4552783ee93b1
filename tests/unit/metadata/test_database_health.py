"""Failures of the database are emitted, and damage is examined at most once in an interval."""

from __future__ import annotations

import asyncio
from typing import cast

from sqlalchemy.exc import DatabaseError

from regmirror.metadata.database_health import EXAMINATION_INTERVAL, DatabaseHealth
from regmirror.metadata.recovery import DatabaseMonitor, RecoveryFailed
from regmirror.telemetry.events import Event, NotStored

DAMAGE = DatabaseError("SELECT", {}, Exception("database disk image is malformed"))
BUSY = DatabaseError("SELECT", {}, Exception("database is locked"))


class Monitor:
    """A monitor whose checks end with ``result``, once ``may_end`` is set."""

    def __init__(self, result: bool | RecoveryFailed = False) -> None:
        self.result, self.checks, self.may_end = result, list[bool](), asyncio.Event()
        self.may_end.set()

    async def check(self, *, is_suspect: bool = False) -> bool:
        self.checks.append(is_suspect)
        await self.may_end.wait()
        if isinstance(self.result, RecoveryFailed):
            raise self.result
        return self.result


class Setup:
    def __init__(self, monitor: Monitor | None) -> None:
        self.events: list[Event] = []
        self.time, self.replaced = 0.0, 0
        self.health = DatabaseHealth(
            self.events.append, cast("DatabaseMonitor | None", monitor), self.on_replaced, lambda: self.time
        )

    async def on_replaced(self) -> None:
        self.replaced += 1

    def messages(self) -> list[str]:
        return [event.detail for event in self.events if isinstance(event, NotStored)]


async def test_damage_is_examined_once_in_an_interval() -> None:
    """An examination reads the whole database."""
    monitor = Monitor()
    setup = Setup(monitor)
    for _ in range(3):
        setup.health.report(DAMAGE)
    await asyncio.sleep(0)
    assert monitor.checks == [True]
    setup.time += EXAMINATION_INTERVAL
    setup.health.report(DAMAGE)
    await asyncio.sleep(0)
    assert monitor.checks == [True, True]
    assert setup.messages() == ["database disk image is malformed"] * 4
    await setup.health.close()


async def test_other_failures_are_emitted_and_not_examined() -> None:
    monitor = Monitor()
    setup = Setup(monitor)
    setup.health.report(BUSY)
    setup.health.report(TimeoutError("the database does not answer"))
    await asyncio.sleep(0)
    assert monitor.checks == []
    assert setup.messages() == ["database is locked", "the database does not answer"]
    await setup.health.close()


async def test_cached_rows_are_written_to_a_database_that_replaced_the_old_one() -> None:
    """Only then."""
    setup = Setup(Monitor(result=False))
    await setup.health.check()
    assert setup.replaced == 0
    setup = Setup(Monitor(result=True))
    await setup.health.check()
    assert setup.replaced == 1


async def test_a_failed_recovery_is_emitted() -> None:
    setup = Setup(Monitor(result=RecoveryFailed("no space left on device")))
    await setup.health.check()
    assert setup.messages() == ["no space left on device"]
    assert setup.replaced == 0


async def test_without_a_monitor_failures_are_only_emitted() -> None:
    setup = Setup(None)
    await setup.health.check()
    setup.health.report(DAMAGE)
    await setup.health.close()
    assert setup.messages() == ["database disk image is malformed"]


async def test_closing_cancels_a_running_examination() -> None:
    monitor = Monitor()
    monitor.may_end.clear()
    setup = Setup(monitor)
    setup.health.report(DAMAGE)
    await asyncio.sleep(0)
    assert monitor.checks == [True]
    async with asyncio.timeout(5):
        await setup.health.close()
