"""An upstream process that hangs: its host accepts connections for it, but sends no response."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.parts.faults import frozen
from tests.fake_registry import FakeRegistry
from tests.faults.process_upstream import process_upstream
from tests.faults.sample import (
    HALF,
    LAYER,
    OTHER,
    add_sample,
    add_small,
    is_stale,
    paths,
    pull_again,
    pulls,
    read_rest,
    reason,
    store,
)
from tests.mirror_fixture import NAME, run_program

FROZEN = "frozen.example"
ALWAYS_ASK = {"tag_max_age": "0"}


@pytest.fixture
def frozen_upstream(tmp_path: Path) -> Iterator[Any]:
    with process_upstream(tmp_path) as process:
        yield process


async def test_a_download_ends_when_its_upstream_wakes_up(
    upstream: FakeRegistry, storage: Path, frozen_upstream: Any
) -> None:
    """B35, B33: meanwhile its tags are stale, and another upstream's pulls are as ever."""
    image, small, healthy = add_sample(FakeRegistry()), add_small(FakeRegistry()), add_sample(upstream, OTHER)
    tag, layer = paths(image, FROZEN)
    registries = {NAME: upstream, FROZEN: frozen_upstream.url}
    async with run_program(storage, registries, freshness=ALWAYS_ASK) as program:
        small_tag = await store(program, small, FROZEN)
        async with program.open(layer) as response:
            begin = await response.content.readexactly(HALF)
            with frozen(frozen_upstream.pid):
                os.kill(frozen_upstream.pid, signal.SIGUSR1)  # handled as soon as the process continues
                assert is_stale(await program.get(small_tag), small)
                assert await pulls(program, healthy, NAME)
                assert not response.content.at_eof()
            rest = await read_rest(response)
        assert rest is not None
        assert begin + rest == LAYER
        assert (await pull_again(program, tag)).body == image.manifest
    assert len(frozen_upstream.gets(image.layer_digests[0])) == 1


async def test_an_upstream_that_stays_frozen_is_given_up(
    upstream: FakeRegistry, storage: Path, frozen_upstream: Any
) -> None:
    """B35, B5: the client's response ends short, a cold tag fails in time, and the next pull resumes."""
    image, healthy = add_sample(FakeRegistry()), add_sample(upstream, OTHER)
    tag, layer = paths(image, FROZEN)
    registries = {NAME: upstream, FROZEN: frozen_upstream.url}
    upstreams = {FROZEN: {"connect_timeout": "1s", "read_timeout": "1s"}}
    async with run_program(storage, registries, upstreams=upstreams) as program:
        async with program.open(layer) as response:
            await response.content.readexactly(HALF)
            with frozen(frozen_upstream.pid):
                assert await read_rest(response) is None
                rejected = await program.get(tag)
                assert await pulls(program, healthy, NAME)
        assert rejected.status in (503, 504)
        assert rejected.json()["errors"][0]["detail"]["upstream"] == FROZEN
        assert (await pull_again(program, layer)).body == LAYER
        assert (await pull_again(program, tag)).body == image.manifest
    assert frozen_upstream.gets(image.layer_digests[0])[-1].endswith(f" bytes={HALF}-")
    assert reason(rejected)
