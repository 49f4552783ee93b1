"""B39: images that are not wholly stored, while the rest of them cannot be had."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from regmirror.mirror.completeness import Completeness
from regmirror.telemetry.events import CircuitChanged
from tests.fake_registry import Status, random_bytes
from tests.integration.pulling import pull_image
from tests.mirror_fixture import wait_until

TAG = "/v2/team/app/manifests/1"
MAX_AGE = 300
OFFLINE = {"offline": True}


@pytest.fixture
def image(upstream: Any) -> Any:
    return upstream.add_image("team/app", "1", [b"one", b"two", random_bytes(5_000)])


@pytest.fixture
def index(upstream: Any) -> Any:
    images = [
        upstream.add_image("team/app", None, [random_bytes(5_000, seed)], platform=f"linux/{name}")
        for seed, name in enumerate(["amd64", "arm64"])
    ]
    return upstream.add_index("team/app", "1", images)


async def store(mirror: Any, *digests: Any) -> None:
    """Have the mirror store these blobs."""
    for digest in digests:
        assert (await mirror.get(f"/v2/team/app/blobs/{digest}")).status == 200
    await wait_until(lambda: set(digests) <= mirror.stored(), "the blobs are stored")
    await mirror.worker._resources.downloads.drain()  # and written down


def paths(image: Any) -> Any:
    return (TAG, f"/v2/team/app/manifests/{image.digest}")


async def ask_all(mirror: Any, image: Any) -> Any:
    """By tag and by digest, GET and HEAD."""
    return [await mirror.request(method, path) for path in paths(image) for method in ("GET", "HEAD")]


async def open_circuit(mirror: Any, upstream: Any) -> Any:
    """Let the upstream fail from now on, and the mirror know it."""
    fault = upstream.fault(Status(503), times=None)
    for _ in range(3):
        assert (await mirror.get("/v2/team/app/manifests/away")).status == 502
    await mirror.events.wait_for(CircuitChanged)
    upstream.clear()
    return fault


async def test_offline_an_incomplete_image_is_not_there(mirror: Any, upstream: Any, image: Any) -> None:
    """B39: 404 says how much of it is, so that clients try their next host at the manifest."""
    await mirror.get(TAG)
    await store(mirror, image.config_digest, image.layer_digests[0])
    upstream.clear()
    await mirror.reload(freshness=OFFLINE)

    responses = await ask_all(mirror, image)

    assert [response.status for response in responses] == [404] * 4
    error = responses[0].json()["errors"][0]
    assert error["code"] == "MANIFEST_UNKNOWN"
    assert "1 of its 3 layers are cached, and the mirror is offline" in error["message"]
    await mirror.reload()
    assert [response.status for response in await ask_all(mirror, image)] == [200] * 4, "nothing is forgotten"
    assert upstream.count() == 0


async def test_offline_a_missing_config_is_said(mirror: Any, upstream: Any, image: Any) -> None:
    await mirror.get(TAG)
    await store(mirror, *image.layer_digests)
    await mirror.reload(freshness=OFFLINE)
    message = (await mirror.get(TAG)).json()["errors"][0]["message"]
    assert "3 of its 3 layers are cached, without its config" in message


async def test_offline_a_complete_image_is_served(mirror: Any, upstream: Any, image: Any) -> None:
    """B32, B39: whatever else is missing of the repository."""
    await pull_image(mirror, image)
    await mirror.reload(freshness=OFFLINE)
    assert [response.status for response in await ask_all(mirror, image)] == [200] * 4


async def test_an_incomplete_image_can_be_served_nevertheless(mirror: Any, upstream: Any, image: Any) -> None:
    """B39: incomplete = "serve", for clients that have the layers already."""
    await mirror.get(TAG)
    await mirror.reload(freshness={**OFFLINE, "incomplete": "serve"})
    assert [response.status for response in await ask_all(mirror, image)] == [200] * 4
    await mirror.reload(freshness={"incomplete": "serve"})
    await open_circuit(mirror, upstream)
    assert [response.status for response in await ask_all(mirror, image)] == [200] * 4
    mirror.clock.wall_ahead += MAX_AGE + 1
    assert (await mirror.get(TAG)).headers["Cache-Status"] == "regmirror; hit; detail=stale"


@pytest.mark.parametrize("is_stale", [False, True])
async def test_while_the_circuit_is_open_an_incomplete_image_is_refused(
    mirror: Any, upstream: Any, image: Any, is_stale: Any
) -> None:
    """B39, B34: 503 with Retry-After, fresh tags, stale ones and digests; and over when it is well."""
    await mirror.get(TAG)
    await store(mirror, *image.layer_digests)
    if is_stale:
        mirror.clock.advance(MAX_AGE + 1)
    fault = await open_circuit(mirror, upstream)

    responses = await ask_all(mirror, image)

    assert [response.status for response in responses] == [503] * 4
    assert responses[0].headers["Retry-After"]
    assert upstream.count() == 0
    fault.remove()
    mirror.clock.advance(5)
    await mirror.events.wait_for(CircuitChanged, 2)
    assert [response.status for response in await ask_all(mirror, image)] == [200] * 4


async def test_while_the_circuit_is_open_a_complete_image_is_served(
    mirror: Any, upstream: Any, image: Any
) -> None:
    """B33: by digest, by fresh tag, by stale tag."""
    await pull_image(mirror, image)
    await open_circuit(mirror, upstream)
    assert [response.status for response in await ask_all(mirror, image)] == [200] * 4
    assert upstream.count() == 0


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(("fault", "status"), [(Status(500), 502), (Status(418), 502)])
async def test_a_stale_answer_that_is_incomplete_is_the_upstreams_error(
    mirror: Any, upstream: Any, image: Any, method: Any, fault: Any, status: Any
) -> None:
    """B39: before the circuit is open."""
    await mirror.get(TAG)
    mirror.clock.advance(MAX_AGE + 1)
    upstream.fault(fault, times=None)
    assert (await mirror.request(method, TAG)).status == status


async def test_a_slow_upstream_is_waited_for_if_what_is_stale_is_incomplete(
    start_mirror: Any, upstream: Any, image: Any
) -> None:
    """B39, B34: as by those who have nothing; and then it is 504."""
    mirror = await start_mirror(stale_deadline=0.05, cold_deadline=0.1)
    await mirror.get(TAG)
    mirror.clock.advance(MAX_AGE + 1)
    upstream.clear()
    gate = upstream.hold()
    response = await mirror.get(TAG)
    assert (response.status, response.json()["errors"][0]["detail"]["reason"]) == (504, "slow")
    assert upstream.count() == 1
    gate.release()


async def test_an_answer_that_comes_late_is_better_than_what_is_incomplete(
    start_mirror: Any, upstream: Any, image: Any
) -> None:
    """B39: when patience with a stale answer at hand has run out, the other kind of it begins."""
    mirror = await start_mirror(stale_deadline=0.05, cold_deadline=30)
    await mirror.get(TAG)
    mirror.clock.advance(MAX_AGE + 1)
    gate = upstream.hold()
    asked = asyncio.create_task(mirror.get(TAG))
    record = mirror.root / "upstreams" / "registry.test.json"
    await wait_until(lambda: record.exists() and b'"slow"' in record.read_bytes(), "patience has run out")
    gate.release()
    assert (await asked).headers["Cache-Status"] == "regmirror; fwd=stale; fwd-status=200"


async def test_limited_manifests_do_not_make_layers_unreachable(
    mirror: Any, upstream: Any, image: Any
) -> None:
    """B30, B39: they can still be fetched, so the stored manifest is of use."""
    await mirror.get(TAG)
    mirror.clock.advance(MAX_AGE + 1)
    upstream.fault(Status(429, {"Retry-After": "60"}), kind="manifest", times=1)
    assert (await mirror.get(TAG)).body == image.manifest
    assert (await mirror.get(f"/v2/team/app/blobs/{image.layer_digests[0]}")).body == b"one"


async def test_limited_blobs_do(mirror: Any, upstream: Any, image: Any) -> None:
    """B39: 429, as the layers would be."""
    await mirror.get(TAG)
    upstream.fault(Status(429, {"Retry-After": "60"}), kind="blob", times=1)
    assert (await mirror.get(f"/v2/team/app/blobs/{image.layer_digests[0]}")).status == 429
    responses = await ask_all(mirror, image)
    assert [response.status for response in responses] == [429] * 4
    mirror.clock.advance(MAX_AGE - 240)
    assert (await mirror.get(TAG)).status == 200


async def test_one_complete_image_of_an_index_is_enough(mirror: Any, upstream: Any, index: Any) -> None:
    """B39: nobody pulls every platform."""
    first = index.images[1]
    await mirror.get(TAG)
    await mirror.get(f"/v2/team/app/manifests/{first.digest}")
    await store(mirror, first.config_digest)
    await mirror.reload(freshness=OFFLINE)
    missing = await mirror.get(TAG)
    assert missing.status == 404
    assert "none of its 2 platform images is completely cached" in missing.json()["errors"][0]["message"]
    await mirror.reload()
    await store(mirror, *first.layer_digests)
    await mirror.reload(freshness=OFFLINE)

    responses = await ask_all(mirror, index)
    responses += [await mirror.get(f"/v2/team/app/manifests/{first.digest}")]

    assert [response.status for response in responses] == [200] * 5
    assert (await mirror.get(f"/v2/team/app/manifests/{index.images[0].digest}")).status == 404


async def test_what_lives_elsewhere_is_not_missed(mirror: Any, upstream: Any) -> None:
    """B39: foreign layers, and the empty config that everybody knows."""
    empty = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    layer = upstream.add_blob("team/app", b"mine")
    foreign = {
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "urls": ["https://x/"],
    }
    upstream.add_manifest(
        "team/app",
        {
            "schemaVersion": 2,
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": empty, "size": 2},
            "layers": [
                {"mediaType": "application/octet-stream", "digest": layer, "size": 4},
                {**foreign, "digest": "sha256:" + "1" * 64, "size": 10},
            ],
        },
        tag="1",
    )
    await mirror.get(TAG)
    await store(mirror, layer)
    await mirror.reload(freshness=OFFLINE)
    assert (await mirror.get(TAG)).status == 200


async def test_nothing_is_looked_up_while_the_upstream_is_well(
    mirror: Any, upstream: Any, image: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B24, B39: it costs nothing then."""

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("nobody asked for this")

    monkeypatch.setattr(Completeness, "find_gap", fail)
    assert [response.status for response in await ask_all(mirror, image)] == [200] * 4
    mirror.clock.advance(MAX_AGE + 1)
    assert [response.status for response in await ask_all(mirror, image)] == [200] * 4
