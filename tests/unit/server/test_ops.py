"""What operators ask a worker, and what anybody may ask as often as he likes (B100)."""

from __future__ import annotations

import asyncio

import pytest

from regmirror.metadata.store import MetadataStore
from regmirror.metadata.upgrade import database_path, upgrade
from regmirror.server.ops import PROBE_MAX_AGE, Ops
from regmirror.telemetry.metrics import Metrics


class Clock:
    def __init__(self):
        self.time = 1_000.0

    def __call__(self):
        return self.time


@pytest.fixture
async def metadata(tmp_path):
    upgrade(database_path(tmp_path))
    (tmp_path / "blobs").mkdir()
    (tmp_path / "staging").mkdir()
    store = MetadataStore(database_path(tmp_path))
    yield store
    await store.close()


def make_ops(metadata, **changed):
    given = {"find_read_error": str, "find_write_error": str, "metrics": Metrics({}, "0"), **changed}
    return Ops(metadata=metadata, **given)


async def test_many_questions_whether_it_is_ready_write_once(metadata):
    """B100: one write probe in some seconds, and its result for everybody."""
    probes, results = [], ["", "no space left on device"]

    def find_write_error():
        probes.append(None)
        return results[len(probes) - 1]

    clock = Clock()
    ops = make_ops(metadata, find_write_error=find_write_error, clock=clock)
    responses = await asyncio.gather(*(ops.readyz(None) for _ in range(20)))
    assert {"ready\n"} == {response.text for response in responses}
    clock.time += PROBE_MAX_AGE - 0.1
    await ops.readyz(None)
    assert len(probes) == 1
    clock.time += 0.2
    responses = await asyncio.gather(*(ops.readyz(None) for _ in range(20)))
    assert {"ready\nnothing can be stored: no space left on device\n"} == {item.text for item in responses}
    assert len(probes) == 2


async def test_metrics_count_no_rows(metadata, monkeypatch):
    """B100: what they tell is kept by the database."""
    queries, first = [], metadata.database.first

    async def note(query):
        queries.append(str(query).lower())
        return await first(query)

    monkeypatch.setattr(metadata.database, "first", note)
    ops = make_ops(metadata)
    assert (await ops.metrics(None)).status == 200
    assert queries
    assert not [query for query in queries if "count(" in query or "from tags" in query]
