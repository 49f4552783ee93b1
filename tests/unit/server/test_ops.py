"""The operational endpoints of a worker: many requests cost as little as one (B100)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from regmirror.metadata.store import MetadataStore
from regmirror.metadata.upgrade import database_path, upgrade
from regmirror.server.ops import PROBE_MAX_AGE, Ops
from regmirror.telemetry.metrics import Metrics

REQUEST = make_mocked_request("GET", "/")


class Clock:
    def __init__(self) -> None:
        self.time = 1_000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
async def metadata(tmp_path: Path) -> AsyncIterator[MetadataStore]:
    upgrade(database_path(tmp_path))
    (tmp_path / "blobs").mkdir()
    (tmp_path / "staging").mkdir()
    store = MetadataStore(database_path(tmp_path))
    yield store
    await store.close()


def make_ops(metadata: MetadataStore, **changed: Any) -> Ops:
    given: dict[str, Any] = {
        "find_read_error": str,
        "find_write_error": str,
        "metrics": Metrics({}, 0),
        **changed,
    }
    return Ops(metadata=metadata, **given)


async def test_many_questions_whether_it_is_ready_write_once(metadata: MetadataStore) -> None:
    """B100: one write probe in some seconds, and its result for everybody."""
    probes: list[None] = []
    results = ["", "no space left on device"]

    def find_write_error() -> str:
        probes.append(None)
        return results[len(probes) - 1]

    clock = Clock()
    ops = make_ops(metadata, find_write_error=find_write_error, clock=clock)
    responses = await asyncio.gather(*(ops.readyz(REQUEST) for _ in range(20)))
    assert {"ready\n"} == {response.text for response in responses}
    clock.time += PROBE_MAX_AGE - 0.1
    await ops.readyz(REQUEST)
    assert len(probes) == 1
    clock.time += 0.2
    responses = await asyncio.gather(*(ops.readyz(REQUEST) for _ in range(20)))
    assert {"ready\nnothing can be stored: no space left on device\n"} == {item.text for item in responses}
    assert len(probes) == 2


async def test_metrics_count_no_rows(metadata: MetadataStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """B100: what they tell is kept by the database."""
    queries: list[str] = []
    first = metadata.database.first

    async def note(query: Any) -> Any:
        queries.append(str(query).lower())
        return await first(query)

    monkeypatch.setattr(metadata.database, "first", note)
    ops = make_ops(metadata)
    assert (await ops.metrics(REQUEST)).status == 200
    assert queries
    assert not [query for query in queries if "count(" in query or "from tags" in query]
