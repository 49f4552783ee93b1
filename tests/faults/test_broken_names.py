"""Name servers without an entry, or unreachable: the mirror runs on the second host, which has its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.parts.networks import SecondHost
from tests.fake_registry import FakeRegistry, Image
from tests.faults.far_registry import FarRegistry
from tests.faults.sample import (
    OTHER,
    add_sample,
    add_small,
    is_stale,
    paths,
    pull_again,
    pulls,
    reason,
    store,
)
from tests.mirror_fixture import run_program

NAMED, NUMBERED = "named.example", "numbered.example"
ALWAYS_ASK = {"tag_max_age": "0"}


@pytest.fixture
async def named(host: SecondHost) -> AsyncIterator[FarRegistry]:
    """An upstream that is configured by the name ``up.example``."""
    async with FarRegistry(host, hostname="up.example") as registry:
        yield registry


@pytest.fixture
def inside(host: SecondHost, named: FarRegistry, far: FakeRegistry) -> dict[str, Any]:
    """How a mirror is run on the second host, where both upstreams are."""
    return {
        "registries": {NAMED: named, NUMBERED: far},
        "settings": {"through": host.command([]), "server": {"listen": f"{host.address}:0"}},
    }


@pytest.fixture
def image(named: FarRegistry, far: FakeRegistry) -> Image:
    return add_sample(named)


@pytest.fixture
def healthy(far: FakeRegistry) -> Image:
    """An image of the upstream that needs no name."""
    return add_sample(far, OTHER)


async def test_an_unknown_name_and_an_unreachable_name_server_have_different_reasons(
    storage: Path,
    host: SecondHost,
    named: FarRegistry,
    image: Image,
    healthy: Image,
    inside: dict[str, Any],
    tmp_path: Path,
) -> None:
    """B38, B34: 502 and a remedy for each; another upstream is pulled from; it recovers by itself."""
    tag = paths(image, NAMED)[0]
    async with run_program(storage, inside["registries"], **inside["settings"]) as program:
        unanswered = await program.get(tag)
        with host.name_server({}, tmp_path):
            unknown = await program.get(tag)
        assert await pulls(program, healthy, NUMBERED)
        with host.name_server({"up.example": host.address}, tmp_path):
            recovered = await pull_again(program, tag)
    assert [(got.status, reason(got)) for got in (unanswered, unknown)] == [(502, "dns")] * 2
    assert "no name server responds" in unanswered.json()["errors"][0]["message"]
    assert "does not exist" in unknown.json()["errors"][0]["message"]
    assert '"reason":"dns"' in program.log
    assert recovered.body == image.manifest
    assert named.count("manifest", "GET") == 1


async def test_cached_tags_are_served_without_any_name_server(
    storage: Path, host: SecondHost, named: FarRegistry, inside: dict[str, Any], tmp_path: Path
) -> None:
    """B32, B33: by a program that has started without one."""
    small = add_small(named)
    with host.name_server({"up.example": host.address}, tmp_path):
        async with run_program(storage, inside["registries"], **inside["settings"]) as program:
            tag = await store(program, small, NAMED)
    with host.black_hole(53, "udp"):
        settings = {**inside["settings"], "freshness": ALWAYS_ASK}
        async with run_program(storage, inside["registries"], **settings) as program:
            assert is_stale(await program.get(tag), small)
