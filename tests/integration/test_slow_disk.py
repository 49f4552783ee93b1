"""A slow disk delays only requests that need it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trustme

from regmirror.blobs.staging import Staging
from regmirror.telemetry.events import DownloadEnded
from tests.conftest import StartMirror
from tests.fake_registry import FakeRegistry, random_bytes
from tests.mirror_fixture import InProcessMirror, wait_until

SYNCING = 40  # blobs; more than any pool of threads here has


@contextmanager
def waiting(
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    concerns: Callable[..., bool] = lambda *_: True,
) -> Iterator[list[Any]]:
    """Let each call of ``owner.name`` that ``concerns`` selects wait until the end; yield the calls."""
    begun: list[Any] = []
    ready, call = threading.Event(), getattr(owner, name)

    def wait(*given: Any) -> Any:
        if concerns(*given):
            begun.append(given)
            assert ready.wait(30)
        return call(*given)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, wait)
        try:
            yield begun
        finally:
            ready.set()


@pytest.mark.parametrize("secure", [False, True])
async def test_blobs_that_are_being_synced_delay_no_other(
    start_mirror: StartMirror, upstream: FakeRegistry, monkeypatch: pytest.MonkeyPatch, secure: bool
) -> None:
    """B23, B35: the headers of a cold blob, its bytes, a warm blob, and whether the server is ready."""
    mirror = await start_mirror(authority=trustme.CA() if secure else None)
    warm, cold = random_bytes(900_000, seed=1), random_bytes(900_000, seed=2)
    paths = [f"/v2/team/app/blobs/{upstream.add_blob('team/app', blob)}" for blob in (warm, cold)]
    assert (await mirror.get(paths[0])).body == warm
    await mirror.events.wait_for(DownloadEnded)
    blobs = [random_bytes(1_000, seed=100 + number) for number in range(SYNCING)]
    others = [f"/v2/team/app/blobs/{upstream.add_blob('team/app', blob)}" for blob in blobs]
    with waiting(monkeypatch, os, "fsync") as begun:
        assert [response.body for response in await asyncio.gather(*map(mirror.get, others))] == blobs
        await wait_until(lambda: bool(begun), "they are being synced")
        for path, blob in zip(paths, (warm, cold), strict=True):
            assert (await mirror.get(path)).body == blob
        assert (await mirror.get("/readyz")).body == b"ready\n"
    await mirror.events.wait_for(DownloadEnded, SYNCING + 2)
    assert len(mirror.stored()) == SYNCING + 2


async def test_probes_of_a_slow_disk_are_one_and_delay_nothing(
    mirror: InProcessMirror, upstream: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B23, B100: for any number of requests for /readyz."""
    blob = random_bytes(1_000)
    path = f"/v2/team/app/blobs/{upstream.add_blob('team/app', blob)}"
    with waiting(monkeypatch, Staging, "find_write_error") as begun:
        asking = [asyncio.create_task(mirror.get("/readyz")) for _ in range(SYNCING)]
        await mirror.wait_for_started(SYNCING)
        await wait_until(lambda: bool(begun), "the disk is tried")
        assert (await mirror.get(path)).body == blob
        assert len(begun) == 1
    assert {(await response).body for response in asking} == {b"ready\n"}


async def test_slow_reads_for_tls_delay_no_download(
    start_mirror: StartMirror, upstream: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B23: readers of bytes that are not in memory wait; the headers of a cold blob do not."""
    mirror = await start_mirror(authority=trustme.CA())
    warm, cold = random_bytes(900_000, seed=1), random_bytes(900_000, seed=2)
    paths = [f"/v2/team/app/blobs/{upstream.add_blob('team/app', blob)}" for blob in (warm, cold)]
    assert (await mirror.get(paths[0])).body == warm
    await mirror.events.wait_for(DownloadEnded)
    monkeypatch.setattr("regmirror.blobs.local.read_cached", lambda *_: 0)
    with waiting(monkeypatch, os, "pread", lambda _, count, __: count > 100_000) as begun:
        reading = [asyncio.create_task(mirror.get(paths[0])) for _ in range(SYNCING)]
        await mirror.wait_for_started(SYNCING)
        await wait_until(lambda: bool(begun), "they are being read")
        async with mirror.open(paths[1]) as response:
            assert (response.status, response.headers["Content-Length"]) == (200, str(len(cold)))
    assert {response.body for response in await asyncio.gather(*reading)} == {warm}
