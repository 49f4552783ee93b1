"""News: what every implementation promises. Servers drop their caches when content was removed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from regmirror.maintenance.news import InvalidationMarker, News


class Follower:
    """Counts the calls of a follower."""

    def __init__(self) -> None:
        self.calls = 0
        self._called = asyncio.Event()

    def __call__(self) -> None:
        self.calls += 1
        self._called.set()

    async def wait(self) -> None:
        async with asyncio.timeout(5):
            await self._called.wait()
        self._called.clear()


@pytest.fixture
def processes(tmp_path: Path) -> tuple[News, News]:
    """The news of two processes on one store."""
    return InvalidationMarker(tmp_path), InvalidationMarker(tmp_path)


async def test_every_follower_is_called_after_a_publication(processes: tuple[News, News]) -> None:
    """The publisher's own process included."""
    one, other = processes
    first, second = Follower(), Follower()
    async with one.follow(first), other.follow(second):
        one.publish()
        await first.wait()
        await second.wait()
        other.publish()
        await first.wait()
        await second.wait()


async def test_without_a_publication_nobody_is_called(
    processes: tuple[News, News], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regmirror.maintenance.news.POLL", 0)
    one, _ = processes
    follower = Follower()
    async with one.follow(follower):
        for _ in range(100):
            await asyncio.sleep(0)
    assert follower.calls == 0


async def test_a_follower_is_called_no_more_after_its_block(
    processes: tuple[News, News], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regmirror.maintenance.news.POLL", 0)
    one, other = processes
    follower = Follower()
    async with one.follow(follower):
        other.publish()
        await follower.wait()
    before = follower.calls
    other.publish()
    for _ in range(100):
        await asyncio.sleep(0)
    assert follower.calls == before


async def test_publishing_without_followers_does_nothing(processes: tuple[News, News]) -> None:
    one, _ = processes
    one.publish()
    one.publish()
