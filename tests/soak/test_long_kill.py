"""B7: a hundred kills, of the program under load and of collections at each of their steps."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import pytest

from regmirror.server.app import prepare
from tests.fake_registry import FakeRegistry
from tests.integration.killing import (
    Load,
    check_after_collection,
    check_integrity,
    run_and_kill,
    start_collecting,
    stock,
)
from tests.integration.test_kill import CLIENTS, fill
from tests.mirror_fixture import NAME, make_config

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

KILLS = 100
PERIOD = 20  # kills between two checks with no server
STEPS = 30  # of a collection; it has some fewer


async def test_a_hundred_kills_under_load(
    upstream: FakeRegistry,
    storage: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """B7: with a full check after every twenty."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    began, dice = time.monotonic(), random.Random(100)
    stock(upstream, dice)
    load = Load(upstream, dice)
    for _ in range(KILLS // PERIOD):
        async with load.by_clients(CLIENTS):
            await run_and_kill(storage, load, PERIOD)
        await check_after_collection(storage)
    assert load.faults == []
    with capsys.disabled():
        print(  # noqa: T201  # the figures
            f"\n{KILLS} kills in {time.monotonic() - began:.0f} s: {load.pulled} correct responses, "
            f"{len(load.faults)} wrong, {load.broken} broken off; "
            f"{upstream.count('blob', 'GET')} blob requests upstream"
        )


async def test_a_collection_is_killed_before_each_of_its_steps(
    upstream: FakeRegistry, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """B7, B42: and the next one finishes, from any state."""
    prepare(make_config(storage, {NAME: upstream}))
    died = 0
    for step in range(1, STEPS):
        await fill(storage, upstream, 12)
        collecting = start_collecting(storage, 0.0, 1, die_before=step)
        response, _ = await asyncio.to_thread(collecting.communicate)
        died += collecting.returncode == -9
        assert response or collecting.returncode == -9
        check_integrity(storage)
        await check_after_collection(storage)
    assert died > 10
    with capsys.disabled():
        print(f"\n{died} of {STEPS - 1} collections killed in the middle")  # noqa: T201  # the figure
