"""What the database does not tell is unknown, not absent: 503 where nothing else can be answered."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from regmirror.metadata.database import LISTS_AT_ONCE, LISTS_WAITING
from tests.fake_registry import FakeRegistry, Image, Status
from tests.integration.pulling import pull_image
from tests.mirror_fixture import InProcessMirror, wait_until

APP = "/v2/team/app"
TAG = f"{APP}/manifests/1"
OFFLINE = {"offline": True}


@pytest.fixture
def image(upstream: FakeRegistry) -> Any:
    return upstream.add_image("team/app", "1", [b"one", b"two"])


@pytest.fixture
async def paths(mirror: InProcessMirror, image: Image) -> Any:
    """Everything of a cached image: by tag, by digest, its config."""
    await pull_image(mirror, image)
    return TAG, f"{APP}/manifests/{image.digest}", f"{APP}/blobs/{image.config_digest}"


@pytest.fixture
def database(mirror: InProcessMirror) -> Any:
    return mirror.worker._resources.metadata.database


@pytest.fixture
def fail(mirror: InProcessMirror, database: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have reads fail from now on, with nothing in memory."""

    async def broken(*_: Any) -> None:
        raise OperationalError("SELECT", {}, Exception("disk I/O error"))

    def begin() -> None:
        mirror.worker._resources.metadata_cache.invalidate_all()
        monkeypatch.setattr(database, "_first", broken)
        monkeypatch.setattr(database, "_read_list", broken)

    return begin


def told(response: Any) -> Any:
    return response.status, response.headers.get("Retry-After")


async def test_offline_what_cannot_be_read_is_not_absent(
    mirror: InProcessMirror,
    upstream: FakeRegistry,
    image: Image,
    paths: Any,
    fail: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """B37, B44: 404 would say that nothing is stored, and clients would not try again."""
    await mirror.reload(freshness=OFFLINE)
    upstream.clear()
    with monkeypatch.context() as patch:
        fail()
        responses = [await mirror.request(method, path) for path in paths for method in ("GET", "HEAD")]
        assert [told(response) for response in responses] == [(503, "1")] * 6
        patch.undo()
    monkeypatch.undo()
    assert [(await mirror.get(path)).status for path in paths] == [200] * 3
    assert upstream.count() == 0


@pytest.mark.parametrize("path", ["_catalog", "team/app/tags/list", "team/app/referrers/{}"])
async def test_offline_a_list_that_cannot_be_read_is_not_empty(
    mirror: InProcessMirror, image: Image, paths: Any, fail: Any, path: str
) -> None:
    """B44: no signatures, no tags, nothing stored: each would be believed."""
    await mirror.reload(freshness=OFFLINE)
    fail()
    assert told(await mirror.get(f"/v2/{path.format(image.digest)}")) == (503, "1")


async def test_offline_a_late_read_is_not_absence(
    mirror: InProcessMirror, database: Any, image: Image, paths: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B44: the same for a database that does not answer, and for the requests that do not wait."""
    await mirror.reload(freshness=OFFLINE)
    gate, real = asyncio.Event(), database._first

    async def hang(query: Any) -> Any:
        await gate.wait()
        return await real(query)

    monkeypatch.setattr("regmirror.metadata.bounded_access.READ_DEADLINE", 0.05)
    monkeypatch.setattr("regmirror.metadata.bounded_access.PING_DEADLINE", 0)
    monkeypatch.setattr(database, "_first", hang)
    mirror.worker._resources.metadata_cache.invalidate_all()
    assert [told(await mirror.get(path)) for path in paths] == [(503, "1")] * 3
    gate.set()
    await wait_until(lambda: not len(mirror.worker._resources.metadata_cache._reads), "it has answered")
    monkeypatch.undo()  # it may take its time now
    assert [(await mirror.get(path)).status for path in paths] == [200] * 3


async def test_what_the_upstream_has_no_more_may_still_be_stored(
    mirror: InProcessMirror,
    upstream: FakeRegistry,
    image: Image,
    paths: Any,
    fail: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """B44: a digest is for ever; its absence upstream is not remembered either."""
    _, by_digest, _ = paths
    upstream.fault(Status(404), kind="manifest", times=None)
    fail()
    assert told(await mirror.get(by_digest)) == (503, "1")
    monkeypatch.undo()
    assert (await mirror.get(by_digest)).body == image.manifest


async def test_a_tag_that_the_upstream_has_no_more_is_gone(
    mirror: InProcessMirror, upstream: FakeRegistry, image: Image, paths: Any, fail: Any
) -> None:
    """B28, B44: what a tag means is the upstream's to say."""
    upstream.fault(Status(404), kind="manifest", times=None)
    mirror.clock.advance(3_600)
    fail()
    response = await mirror.get(TAG)
    assert (response.status, response.code) == (404, "MANIFEST_UNKNOWN")


async def test_a_tag_that_is_kept_when_it_is_gone_is_not_absent(
    mirror: InProcessMirror,
    upstream: FakeRegistry,
    image: Image,
    paths: Any,
    fail: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """B33, B44: with ``on_missing = "keep"`` the database has the last word."""
    await mirror.reload(freshness={"on_missing": "keep", "missing_max_age": 0})
    upstream.fault(Status(404), kind="manifest", times=None)
    mirror.clock.advance(3_600)
    fail()
    assert told(await mirror.get(TAG)) == (503, "1")
    monkeypatch.undo()
    assert (await mirror.get(TAG)).body == image.manifest


async def test_online_a_pull_goes_on_without_the_database(
    mirror: InProcessMirror, upstream: FakeRegistry, image: Image, paths: Any, fail: Any
) -> None:
    """B44: the upstream can answer it."""
    mirror.clock.advance(3_600)
    fail()
    assert [(await mirror.get(path)).status for path in paths] == [200] * 3


async def test_a_good_file_is_not_put_aside_because_its_size_cannot_be_read(
    mirror: InProcessMirror, image: Image, paths: Any, fail: Any
) -> None:
    """B6, B44: memory may hold what a manifest claimed before the blob was stored."""
    *_, path = paths
    fail()
    mirror.worker._resources.metadata_cache._sizes.put(image.config_digest, 1)
    assert (await mirror.get(path)).status == 200
    assert image.config_digest in mirror.stored()
    assert not list((mirror.root / "quarantine").glob("*"))


async def test_any_number_of_lists_leaves_the_database_to_pulls(
    mirror: InProcessMirror, database: Any, image: Image, paths: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B44, B100: lists have connections of their own, and few wait for them."""
    monkeypatch.setattr("regmirror.metadata.database.LIST_WAIT", 1_000)
    monkeypatch.setattr("regmirror.metadata.cache.LIST_DEADLINE", 1_000)
    await mirror.reload(freshness=OFFLINE)
    gate, real = asyncio.Event(), database._read_list

    async def hang(work: Any) -> Any:
        async def slow(connection: Any) -> Any:
            await gate.wait()
            return await work(connection)

        return await real(slow)

    monkeypatch.setattr(database, "_read_list", hang)
    asked = [
        asyncio.create_task(mirror.get("/v2/_catalog?n=1")) for _ in range(LISTS_AT_ONCE + LISTS_WAITING)
    ]
    await wait_until(lambda: database._waiting == LISTS_WAITING, "as many wait as may")
    assert told(await mirror.get("/v2/_catalog?n=1")) == (503, "1")
    mirror.worker._resources.metadata_cache.invalidate_all()
    assert [(await mirror.get(path)).status for path in paths] == [200] * 3
    gate.set()
    assert {response.status for response in await asyncio.gather(*asked)} == {200}
