"""B40: ten times more than ``max_size`` is pulled at once; the store keeps within one blob of it."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.fake_registry import FakeRegistry
from tests.mirror_fixture import NAME, Program, run_program

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]

MAX_SIZE = 100_000_000
BLOB = 5_000_000
BLOBS = 10 * MAX_SIZE // BLOB
CLIENTS = 16
PULLS = 2 * BLOBS // CLIENTS  # of each client


def used(storage: Path) -> int:
    """Disk usage of stored and arriving blobs, as du counts it; first the stored ones, so
    that none is counted twice.
    """
    total = 0
    for directory in (storage / "blobs" / "sha256", storage / "staging"):
        for path in directory.iterdir():
            with suppress(FileNotFoundError):
                total += path.stat().st_blocks * 512
    return total


async def pull(program: Program, digests: list[str], seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(PULLS):
        digest = dice.choice(digests)
        found = hashlib.sha256()
        async with program.open(f"/v2/team/app/blobs/{digest}", headers={"Connection": "close"}) as response:
            assert response.status == 200, await response.read()
            async for piece in response.content.iter_any():
                found.update(piece)
        assert f"sha256:{found.hexdigest()}" == digest


async def sample(storage: Path, used_bytes: list[int]) -> None:
    while True:
        used_bytes.append(await asyncio.to_thread(used, storage))
        await asyncio.sleep(0.02)


async def test_a_storm_of_ten_times_the_quota(
    upstream: FakeRegistry,
    storage: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """B40: sixteen clients, two workers; all responses are correct meanwhile."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    digests = [upstream.add_big_blob("team/app", BLOB, seed) for seed in range(BLOBS)]
    limits: dict[str, Any] = {"storage": {"max_size": str(MAX_SIZE), "min_free": "0"}}
    began, used_bytes = time.monotonic(), list[int]()
    async with run_program(storage, {NAME: upstream}, workers=2, **limits) as program:
        sampling = asyncio.create_task(sample(storage, used_bytes))
        await asyncio.gather(*(pull(program, digests, seed) for seed in range(CLIENTS)))
        sampling.cancel()
        kept_out = program.log_records("not stored")
    with capsys.disabled():
        print(  # noqa: T201  # the measurement
            f"\n{CLIENTS * PULLS * BLOB / 1e6:.0f} MB pulled in {time.monotonic() - began:.0f} s, "
            f"{len(digests) * BLOB / MAX_SIZE:.0f} times max_size on offer: at most "
            f"{max(used_bytes) / MAX_SIZE:.3f} of max_size in {len(used_bytes)} samples, "
            f"{used_bytes[-1] / MAX_SIZE:.3f} at the end; {len(kept_out)} passed on without being stored"
        )
    assert max(used_bytes) <= MAX_SIZE + BLOB
    assert max(used_bytes) > 0.8 * MAX_SIZE
