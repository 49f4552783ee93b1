"""One call for many: shared work, shared failures, and waiters that leave."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from regmirror.singleflight import SingleFlight
from tests.mirror_fixture import wait_until


class Work:
    """Work that waits for its release and counts how often it was begun."""

    def __init__(self, result: Any = "done") -> None:
        self.begun = 0
        self.result = result
        self.release = asyncio.Event()

    async def __call__(self) -> Any:
        self.begun += 1
        await self.release.wait()
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@pytest.fixture
def flight() -> Any:
    return SingleFlight()


async def start_all(flight: Any, work: Any, count: Any, key: Any = "key") -> Any:
    """So many tasks that wait for one key."""
    tasks = [asyncio.create_task(flight.do(key, work)) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


async def test_those_who_ask_at_the_same_time_share_one_call(flight: Any) -> None:
    work = Work()
    tasks = await start_all(flight, work, 10)
    work.release.set()
    assert await asyncio.gather(*tasks) == ["done"] * 10
    assert work.begun == 1


async def test_different_keys_are_different_calls(flight: Any) -> None:
    one, two = Work("one"), Work("two")
    tasks = [*await start_all(flight, one, 2, "1"), *await start_all(flight, two, 2, "2")]
    assert len(flight) == 2
    one.release.set()
    two.release.set()
    assert await asyncio.gather(*tasks) == ["one", "one", "two", "two"]


async def test_after_the_call_has_ended_the_next_one_is_new(flight: Any) -> None:
    work = Work()
    work.release.set()
    await flight.do("key", work)
    assert "key" not in flight
    await flight.do("key", work)
    assert work.begun == 2


async def test_a_failure_reaches_every_waiter(flight: Any) -> None:
    """B20: and it is not kept for those who come later."""
    work = Work(ValueError("no"))
    tasks = await start_all(flight, work, 3)
    work.release.set()
    assert [str(error) for error in await asyncio.gather(*tasks, return_exceptions=True)] == ["no"] * 3
    assert work.begun == 1
    assert await flight.do("key", _return_again) == "again"


async def _return_again() -> Any:
    return "again"


@pytest.mark.parametrize("place", [0, 1])
async def test_a_waiter_that_is_cancelled_disturbs_nobody(flight: Any, place: Any) -> None:
    """B16: the one who caused the call is a waiter like any other."""
    work = Work()
    tasks = await start_all(flight, work, 3)
    tasks.pop(place).cancel()
    await asyncio.sleep(0)
    work.release.set()
    assert await asyncio.gather(*tasks) == ["done", "done"]


async def test_work_goes_on_when_all_have_left(flight: Any) -> None:
    work = Work()
    (task,) = await start_all(flight, work, 1)
    task.cancel()
    await asyncio.sleep(0)
    assert "key" in flight
    later = await start_all(flight, work, 1)
    work.release.set()
    assert await asyncio.gather(*later) == ["done"]
    assert work.begun == 1


async def test_a_failure_that_nobody_waits_for_is_no_error_of_the_loop(flight: Any) -> None:
    reported = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
    work = Work(ValueError("no"))
    flight.start("key", work)
    work.release.set()
    await wait_until(lambda: "key" not in flight, "the work has failed")
    assert reported == []


async def test_closing_cancels_what_is_in_flight(flight: Any) -> None:
    (task,) = await start_all(flight, Work(), 1)
    await flight.close()
    assert len(flight) == 0
    with pytest.raises(asyncio.CancelledError):
        await task
