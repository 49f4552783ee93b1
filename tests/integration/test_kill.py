"""B7: ``kill -9`` at any moment, under load, of a worker, of all, of a collection."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from regmirror.server.app import prepare
from tests.fake_registry import FakeRegistry
from tests.integration.killing import (
    LIMITS,
    MAX_SIZE,
    REPOSITORIES,
    Load,
    ask,
    check_after_collection,
    check_integrity,
    run_and_kill,
    start_collecting,
    stock,
)
from tests.integration.pulling import pull_image
from tests.mirror_fixture import NAME, make_config, run_mirror

KILLS = 8
DEATHS = 6  # of collections
CLIENTS = 6


@pytest.fixture(autouse=True)
def no_leftovers_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary files of killed programs are removed with those of the test."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def blobs_of(upstream: FakeRegistry, repository: str) -> Any:
    return upstream.repository(repository).blobs.values()


@pytest.mark.timeout(120)
async def test_nothing_is_lost_or_wrong_when_the_program_is_killed_under_load(
    upstream: FakeRegistry, storage: Path
) -> None:
    """B7, B42: while it evicts, and while another process collects."""
    dice = random.Random(7)
    stock(upstream, dice)
    load = Load(upstream, dice)
    async with load.by_clients(CLIENTS):
        await run_and_kill(storage, load, KILLS)
    assert load.faults == []
    assert load.pulled > 10 * KILLS
    offered = {source.digest(): source.size for name in REPOSITORIES for source in blobs_of(upstream, name)}
    assert sum(offered.values()) > 2 * MAX_SIZE
    assert upstream.count("blob", "GET") > len(offered)  # evicted or collected, and fetched again
    await check_after_collection(storage)


async def test_a_store_that_was_killed_often_serves_all_it_names(
    upstream: FakeRegistry, storage: Path
) -> None:
    """B7: the program starts on it, and every tag can be pulled whole."""
    dice = random.Random(8)
    stock(upstream, dice)
    load = Load(upstream, dice)
    async with load.by_clients(CLIENTS):
        await run_and_kill(storage, load, 2)
    async with run_mirror(storage, {NAME: upstream}, **LIMITS) as mirror:
        image = upstream.add_image("team/app", "last", layers=[b"layer"])
        await pull_image(mirror, image, tag="last")
        load.program = mirror.client
        for _ in range(20):
            await load.pull_something(dice)
    assert load.faults == []


async def fill(storage: Path, upstream: FakeRegistry, count: int) -> None:
    """Images by tags, of which every second one then loses its tag."""
    limits = {**LIMITS, "freshness": {"tag_max_age": "0"}}
    async with run_mirror(storage, {NAME: upstream}, **limits) as mirror:
        for number in range(count):
            image = upstream.add_image("team/app", str(number), layers=[b"shared", b"layer %d" % number])
            await pull_image(mirror, image, tag=str(number))
        for number in range(0, count, 2):
            upstream.remove_tag("team/app", str(number))
        for number in range(0, count, 2):
            await mirror.get(f"/v2/team/app/manifests/{number}")


async def test_a_collection_that_is_killed_is_finished_by_the_next_one(
    upstream: FakeRegistry, storage: Path
) -> None:
    """B7, B42: before a transaction or between a row and its file, at the collection's own steps."""
    prepare(make_config(storage, {NAME: upstream}))
    dice = random.Random(9)
    died = 0
    for step in dice.sample(range(1, 16), DEATHS):
        await fill(storage, upstream, 8)
        collecting = start_collecting(storage, 0.0, 1, die_before=step)
        response, _ = await asyncio.to_thread(collecting.communicate)
        assert response or collecting.returncode == -9
        died += collecting.returncode == -9
        check_integrity(storage)
        await check_after_collection(storage)
    assert died > 2
    assert len(ask(storage, "SELECT name FROM tags")) == 4
    assert len(ask(storage, "SELECT digest FROM blobs")) == 1 + 4 + 1
