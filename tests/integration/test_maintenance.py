"""Collection, eviction, purge and pins: through the commands beside a running mirror, and in it."""

from __future__ import annotations

import asyncio
import fcntl
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from regmirror.telemetry.events import BlobRemoved, DownloadEnded, NotStored
from tests.fake_registry import FakeRegistry, random_bytes
from tests.integration.test_commands import run
from tests.mirror_fixture import NAME, run_mirror, wait_until

APP = "/v2/team/app"
SHARED = random_bytes(50_000, seed=1)


@pytest.fixture
async def upstream() -> AsyncIterator[Any]:
    async with FakeRegistry() as registry:
        yield registry


async def pull(mirror: Any, image: Any) -> None:
    """Everything of an image, by its tag; each answer is right."""
    name = f"/v2/{image.repository}"
    response = await mirror.get(f"{name}/manifests/{image.tag or image.digest}")
    assert response.body == image.manifest
    for digest, data in zip(image.blob_digests, (image.config, *image.layers), strict=True):
        assert (await mirror.get(f"{name}/blobs/{digest}")).body == data


async def command(mirror: Any, *arguments: Any, **variables: Any) -> Any:
    """A command on the mirror's store, by JSON."""
    values = {
        "REGMIRROR_STORAGE__PATH": str(mirror.root),
        "REGMIRROR_GC__GRACE": "0",
        "REGMIRROR_DEFAULT_UPSTREAM": NAME,
        "REGMIRROR_UPSTREAMS": json.dumps({NAME: {"url": "http://127.0.0.1:1"}}),
        **variables,
    }
    found = await asyncio.to_thread(run, "--json", *arguments, cwd=mirror.root.parent, **values)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


def rows(mirror: Any, query: Any) -> Any:
    with closing(sqlite3.connect(mirror.root / "regmirror.db")) as connection:
        return connection.execute(query).fetchall()


def recorded(mirror: Any) -> set[str]:
    """The digests of blobs that have a row."""
    return {row[0] for row in rows(mirror, "SELECT digest FROM blobs")}


def is_consistent(mirror: Any) -> Any:
    """Files are rows, rows are named by a manifest, and the totals are right."""
    named = {row[0] for row in rows(mirror, "SELECT digest FROM manifest_references WHERE role != 'subject'")}
    stored = {row[0] for row in rows(mirror, "SELECT digest FROM blobs")}
    counted = rows(mirror, "SELECT count(*), coalesce(sum(size), 0) FROM blobs")
    total = rows(mirror, "SELECT count, bytes FROM totals WHERE what = 'blobs'")
    return mirror.stored() == stored and stored <= named and counted == total


async def test_a_moved_tags_old_image_is_collected_and_what_it_shared_stays(
    upstream: Any, tmp_path: Path
) -> None:
    """B8, B42, B43, B45: a dry run lists what the real run then removes."""
    old = upstream.add_image("team/app", "1", [SHARED, b"old"])
    always = {"tag_max_age": "0"}
    async with run_mirror(tmp_path / "data", {NAME: upstream}, freshness=always) as mirror:
        await pull(mirror, old)
        new = upstream.add_image("team/app", "1", [SHARED, b"new"])
        await pull(mirror, new)
        assert (await command(mirror, "gc", REGMIRROR_GC__GRACE="1h"))["removed"] == [], (
            "within the grace time"
        )
        planned = await command(mirror, "gc", "--dry-run")
        before = mirror.stored()
        done = await command(mirror, "gc")
        assert planned["removed"] == done["removed"]
        assert {item["digest"] for item in done["removed"]} == {old.digest, old.layer_digests[1]}
        assert before - mirror.stored() == {old.layer_digests[1]}
        asked = upstream.count(kind="blob")
        await pull(mirror, new)
        assert upstream.count(kind="blob") == asked
        assert is_consistent(mirror)


async def test_children_and_referrers_of_what_is_kept_stay(upstream: Any, tmp_path: Path) -> None:
    """B43."""
    images = [
        upstream.add_image("team/app", None, [SHARED], platform=name)
        for name in ("linux/amd64", "linux/arm64")
    ]
    index = upstream.add_index("team/app", "1", images)
    async with run_mirror(tmp_path / "data", {NAME: upstream}) as mirror:
        await mirror.get(f"{APP}/manifests/{index.tag}")
        await pull(mirror, images[0])
        assert (await command(mirror, "gc"))["removed"] == []
        assert is_consistent(mirror)


async def test_a_blob_that_no_manifest_names_goes_after_the_grace_time(upstream: Any, tmp_path: Path) -> None:
    """B43: a fresh one stays."""
    digest = upstream.add_blob("team/app", SHARED)
    async with run_mirror(tmp_path / "data", {NAME: upstream}) as mirror:
        await mirror.get(f"{APP}/blobs/{digest}")
        assert (await command(mirror, "gc", REGMIRROR_GC__GRACE="1h"))["removed"] == []
        assert [item["digest"] for item in (await command(mirror, "gc"))["removed"]] == [digest]
        assert mirror.stored() == set()


async def test_files_and_rows_that_have_parted_meet_again(upstream: Any, tmp_path: Path) -> None:
    """B42, B46: what a kill between the two leaves."""
    image = upstream.add_image("team/app", "1", [SHARED, b"other"])
    async with run_mirror(tmp_path / "data", {NAME: upstream}) as mirror:
        await pull(mirror, image)
        await wait_until(lambda: len(rows(mirror, "SELECT digest FROM blobs")) == 3, "all rows are written")
        with closing(sqlite3.connect(mirror.root / "regmirror.db")) as connection:
            connection.execute("DELETE FROM blobs WHERE digest = ?", [image.layer_digests[0]])
            connection.execute("INSERT INTO removals VALUES (?, 5, 'unreferenced')", [image.layer_digests[1]])
            connection.execute("DELETE FROM blobs WHERE digest = ?", [image.layer_digests[1]])
            connection.commit()
        mirror.blob_path(image.config_digest).unlink()
        await command(mirror, "gc")
        assert mirror.stored() == {image.layer_digests[0]}
        assert is_consistent(mirror)
        await pull(mirror, image)
        # A blob is adopted when its last client has all of it.
        await wait_until(lambda: mirror.stored() == {*image.blob_digests}, "everything is stored again")
        await wait_until(lambda: is_consistent(mirror), "and its rows are written")
        assert len(rows(mirror, "SELECT digest FROM blobs")) == 3


async def test_eviction_takes_the_least_recently_pulled_and_leaves_what_is_pinned(
    upstream: Any, tmp_path: Path
) -> None:
    """B40, B45."""
    blobs = [random_bytes(10_000, seed=number) for number in range(4)]
    images = [upstream.add_image("team/app", str(number), [blob]) for number, blob in enumerate(blobs)]
    async with run_mirror(tmp_path / "data", {NAME: upstream}) as mirror:
        for image in images:
            await pull(mirror, image)
            # The row of a blob has the time of its commit, which follows the client's last byte.
            digests = {*image.blob_digests}
            await wait_until(lambda wanted=digests: wanted <= recorded(mirror), "its rows are written")
            mirror.clock.advance(10)
        assert await command(mirror, "pin", "team/app:1") == {"pattern": f"{NAME}/team/app:1"}
        assert [item["pattern"] for item in await command(mirror, "pins")] == [f"{NAME}/team/app:1"]
        planned = await command(mirror, "evict", "--to", "25000", "--dry-run")
        done = await command(mirror, "evict", "--to", "25000")
        assert planned["removed"] == done["removed"]
        gone = {item["digest"] for item in done["removed"]}
        assert images[0].layer_digests[0] in gone
        assert images[2].layer_digests[0] in gone
        assert gone.isdisjoint({*images[1].blob_digests, *images[3].layer_digests})
        assert is_consistent(mirror)
        await command(mirror, "unpin", "team/app:1")
        assert await command(mirror, "pins") == []


async def test_what_is_being_read_is_not_evicted(upstream: Any, tmp_path: Path) -> None:
    """B40."""
    digest = upstream.add_blob("team/app", SHARED)
    async with run_mirror(tmp_path / "data", {NAME: upstream}) as mirror:
        await mirror.get(f"{APP}/blobs/{digest}")
        await mirror.events.wait_for(DownloadEnded)
        with mirror.blob_path(digest).open("rb") as reader:
            fcntl.flock(reader, fcntl.LOCK_SH)
            assert (await command(mirror, "evict", "--to", "0"))["removed"] == []
        assert [item["digest"] for item in (await command(mirror, "evict", "--to", "0"))["removed"]] == [
            digest
        ]


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_storm_never_exceeds_the_quota(upstream: Any, tmp_path: Path, workers: Any) -> None:
    """B40: ten times more than fits, pulled at once; every answer is right."""
    blobs = {}
    for number in range(40):
        data = random_bytes(25_000, seed=number)
        blobs[upstream.add_blob("team/app", data)] = data
    storage, limits = tmp_path / "data", {"max_size": "100000", "min_free": "0"}
    async with (
        run_mirror(storage, {NAME: upstream}, storage=limits) as one,
        run_mirror(storage, {NAME: upstream}, storage=limits) as other,
    ):
        mirrors = [one, other][:workers]
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                staged = [path for path in (storage / "staging").glob("*") if path.suffix != ".note"]
                paths = [*(storage / "blobs").glob("*/*"), *staged]
                most = max(most, sum(path.stat().st_size for path in paths if path.exists()))
                await asyncio.sleep(0.002)

        async def client(place: Any) -> None:
            for digest in list(blobs)[place::8]:
                response = await mirrors[place % workers].get(f"{APP}/blobs/{digest}")
                assert response.body == blobs[digest]

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(client(place) for place in range(8)))
        watching.cancel()
        assert 0 < most <= 125_000
        assert {event.reason for item in mirrors for event in item.events.of(BlobRemoved)} <= {"evicted"}


async def test_a_blob_larger_than_the_quota_is_passed_on_and_evicts_nothing(
    upstream: Any, tmp_path: Path
) -> None:
    small, large = (
        upstream.add_blob("team/app", SHARED),
        upstream.add_blob("team/app", random_bytes(200_000, 3)),
    )
    limits = {"max_size": "100000", "min_free": "0"}
    async with run_mirror(tmp_path / "data", {NAME: upstream}, storage=limits) as mirror:
        await mirror.get(f"{APP}/blobs/{small}")
        response = await mirror.get(f"{APP}/blobs/{large}")
        assert (response.body, response.headers["Cache-Status"]) == (
            random_bytes(200_000, 3),
            "regmirror; fwd=miss",
        )
        assert mirror.stored() == {small}
        assert [event.reason for event in mirror.events.of(NotStored)] == ["quota"]


async def test_what_is_purged_is_asked_for_again_at_once(upstream: Any, tmp_path: Path) -> None:
    image = upstream.add_image("team/app", "1", [SHARED])
    kept = upstream.add_image("team/app", "2", [SHARED, b"own"])
    async with run_mirror(tmp_path / "data", {NAME: upstream}) as mirror:
        await pull(mirror, image)
        await pull(mirror, kept)
        removed = {item["digest"] for item in (await command(mirror, "purge", "team/app:1"))["removed"]}
        assert removed == {image.digest}
        asked = upstream.count()
        await pull(mirror, kept)
        assert upstream.count() == asked
        await pull(mirror, image)
        assert upstream.count() == asked + 1
        await command(mirror, "purge", "team/*")
        assert mirror.stored() == set()
        assert is_consistent(mirror)


async def test_a_flipped_byte_is_found_quarantined_and_healed(upstream: Any, tmp_path: Path) -> None:
    """B47."""
    image = upstream.add_image("team/app", "1", [SHARED])
    layer = image.layer_digests[0]
    async with run_mirror(tmp_path / "data", {NAME: upstream}) as mirror:
        await pull(mirror, image)
        await wait_until(lambda: is_consistent(mirror) and len(mirror.stored()) == 2, "all rows are written")
        path = mirror.blob_path(layer)
        path.write_bytes(b"X" + SHARED[1:])
        url = {"REGMIRROR_UPSTREAMS": json.dumps({NAME: {"url": upstream.url}})}
        found = await command(mirror, "scrub", "--rate", "0", **url)
        assert [(item["digest"], item["healed"]) for item in found["rotten"]] == [(layer, True)]
        assert path.read_bytes() == SHARED
        assert len(list((mirror.root / "quarantine").iterdir())) == 1
        assert upstream.count(kind="blob", method="GET", reference=layer) == 2
        assert (await command(mirror, "scrub", **url))["rotten"] == []
