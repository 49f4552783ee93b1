"""When an upstream is asked: tags that move, digests that cannot, names that are missing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from regmirror.telemetry.events import DownloadEnded
from tests.fake_registry import SetHeaders, Status, StripHeaders
from tests.integration.pulling import pull_image

TAG = "/v2/team/app/manifests/1"
MAX_AGE = 300  # seconds: the default of freshness.tag_max_age
MISSING_MAX_AGE = 10  # seconds: the default of freshness.missing_max_age
DENIED_MAX_AGE = 5  # seconds


@pytest.fixture
def image(upstream: Any) -> Any:
    return upstream.add_image("team/app", "1", [b"first"])


async def test_a_warm_tag_asks_nobody(mirror: Any, upstream: Any, image: Any) -> None:
    """B24: a thousand pulls within the max age cost the upstream nothing, HEAD or GET."""
    await mirror.get(TAG)
    mirror.clock.advance(MAX_AGE - 60)
    upstream.clear()
    connections = upstream.connections

    for batch in range(10):
        method = ("GET", "HEAD")[batch % 2]
        responses = await asyncio.gather(*(mirror.request(method, TAG) for _ in range(100)))
        assert {response.status for response in responses} == {200}
        assert {response.headers["Docker-Content-Digest"] for response in responses} == {image.digest}
        assert {response.headers["Cache-Status"] for response in responses} == {"regmirror; hit"}

    assert upstream.count() == 0
    assert upstream.connections == connections


async def test_a_tag_is_still_warm_after_a_restart(start_mirror: Any, upstream: Any, image: Any) -> None:
    """B24: what was learnt a moment ago is in the database."""
    first = await start_mirror()
    await first.get(TAG)
    upstream.clear()

    second = await start_mirror(clock=first.clock)

    assert (await second.get(TAG)).body == image.manifest
    assert upstream.count() == 0


async def test_an_unchanged_tag_costs_one_head(mirror: Any, upstream: Any, image: Any) -> None:
    """B25: after the max age the upstream is asked what the tag means, not for its content."""
    await mirror.get(TAG)
    mirror.clock.advance(MAX_AGE + 1)
    upstream.clear()

    response = await mirror.get(TAG)

    assert response.body == image.manifest
    assert response.headers["Cache-Status"] == "regmirror; fwd=stale; fwd-status=200"
    assert [request.method for request in upstream.requests] == ["HEAD"]
    await mirror.get(TAG)
    assert upstream.count() == 1, "it is fresh again"


async def test_a_changed_tag_is_served_on_that_very_pull(mirror: Any, upstream: Any, image: Any) -> None:
    """B25: nobody gets the old image once more."""
    await mirror.get(TAG)
    changed = upstream.add_image("team/app", "1", [b"second"])
    assert (await mirror.get(TAG)).body == image.manifest, "within the max age"
    mirror.clock.advance(MAX_AGE + 1)
    upstream.clear()

    response = await mirror.get(TAG)

    assert response.body == changed.manifest
    assert response.headers["Docker-Content-Digest"] == changed.digest
    assert [request.method for request in upstream.requests] == ["HEAD", "GET"]
    assert (await mirror.get(f"/v2/team/app/manifests/{image.digest}")).body == image.manifest


async def test_a_changed_tag_is_told_by_head_as_well(mirror: Any, upstream: Any, image: Any) -> None:
    """B25: most clients resolve a tag by HEAD and pull the digest."""
    assert (await mirror.head(TAG)).headers["Docker-Content-Digest"] == image.digest
    changed = upstream.add_image("team/app", "1", [b"second"])
    mirror.clock.advance(MAX_AGE + 1)

    assert (await mirror.head(TAG)).headers["Docker-Content-Digest"] == changed.digest
    assert upstream.count("manifest", "HEAD") == 2
    assert upstream.count("manifest", "GET") == 0


async def test_many_who_find_a_tag_stale_ask_once(mirror: Any, upstream: Any, image: Any) -> None:
    """B25: fifty at once are one HEAD."""
    await mirror.get(TAG)
    mirror.clock.advance(MAX_AGE + 1)
    upstream.clear()
    gate = upstream.hold("manifest")

    pulls = [asyncio.create_task(mirror.get(TAG)) for _ in range(50)]
    await gate.wait_for_arrivals()
    gate.release()

    assert {response.status for response in await asyncio.gather(*pulls)} == {200}
    assert upstream.count("manifest") == 1


@pytest.mark.parametrize(
    ("rules", "age", "requests"),
    [
        ([], MAX_AGE - 60, 0),
        ([{"match": "registry.test/team/*:[0-9]*", "tag_max_age": "1d"}], MAX_AGE + 1, 0),
        ([{"match": "registry.test/team/*:[0-9]*", "tag_max_age": "0"}], 0, 1),
        ([{"match": "**:latest", "tag_max_age": "0"}], MAX_AGE - 60, 0),
        (
            [{"match": "**:1", "tag_max_age": "1m"}, {"match": "registry.test/**", "tag_max_age": "1d"}],
            61,
            1,
        ),
    ],
)
async def test_the_max_age_is_the_rules(
    start_mirror: Any, upstream: Any, image: Any, rules: Any, age: Any, requests: Any
) -> None:
    """B29: the first rule that matches decides; 0 asks always."""
    mirror = await start_mirror(freshness={"rules": rules})
    await mirror.get(TAG)
    mirror.clock.advance(age)
    upstream.clear()

    assert (await mirror.get(TAG)).body == image.manifest
    assert upstream.count() == requests


async def test_digests_never_ask(start_mirror: Any, upstream: Any, image: Any) -> None:
    """B29: neither a max age of 0 nor a year changes what cannot move."""
    mirror = await start_mirror(freshness={"tag_max_age": "0"})
    paths = [f"/v2/team/app/manifests/{image.digest}"]
    paths += [f"/v2/team/app/blobs/{digest}" for digest in image.blob_digests]
    for path in paths:
        await mirror.get(path)
    await mirror.events.wait_for(DownloadEnded, 2)
    upstream.clear()
    mirror.clock.advance(365 * 86400)

    for path in paths:
        assert (await mirror.get(path)).status == 200
        assert (await mirror.head(path)).status == 200
    assert upstream.count() == 0


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_missing_tag_is_asked_for_once(mirror: Any, upstream: Any, image: Any, method: Any) -> None:
    """B28: fifty pulls within ten seconds are at most two requests."""
    path = "/v2/team/app/manifests/nope"

    responses = [await mirror.request(method, path) for _ in range(25)]
    responses += await asyncio.gather(*(mirror.request(method, path) for _ in range(25)))

    assert {response.status for response in responses} == {404}
    assert 1 <= upstream.count("manifest") <= 2


async def test_a_missing_tag_is_asked_for_again_after_a_while(mirror: Any, upstream: Any, image: Any) -> None:
    """B28: what is pushed later is found."""
    path = "/v2/team/app/manifests/later"
    assert (await mirror.get(path)).code == "MANIFEST_UNKNOWN"
    upstream.move_tag("team/app", "later", image.digest)
    assert (await mirror.get(path)).status == 404, "it is remembered"

    mirror.clock.advance(MISSING_MAX_AGE + 1)

    assert (await mirror.get(path)).body == image.manifest
    assert (await mirror.head(path)).status == 200, "nothing of the 404 is left"


async def test_missing_names_need_not_be_remembered(start_mirror: Any, upstream: Any, image: Any) -> None:
    """B28: with a max age of 0 every pull asks."""
    mirror = await start_mirror(freshness={"missing_max_age": "0"})
    for _ in range(3):
        await mirror.get("/v2/team/app/manifests/nope")

    assert upstream.count("manifest", "GET") == 3


@pytest.mark.parametrize("path", ["/v2/team/app/blobs/", "/v2/team/app/manifests/"])
async def test_a_missing_digest_is_asked_for_once(mirror: Any, upstream: Any, image: Any, path: Any) -> None:
    """B28: the same for blobs and manifests by digest."""
    for _ in range(10):
        assert (await mirror.get(f"{path}sha256:{'0' * 64}")).status == 404

    assert upstream.count() == 1


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_what_is_no_manifest_may_be_a_blob(mirror: Any, upstream: Any, image: Any, method: Any) -> None:
    """B28: containerd asks for a digest as a manifest first, and as a blob after the 404."""
    digest = image.config_digest
    assert (await mirror.request(method, f"/v2/team/app/manifests/{digest}")).status == 404

    assert (await mirror.request(method, f"/v2/team/app/blobs/{digest}")).status == 200
    assert (await mirror.get(f"/v2/team/app/blobs/{image.digest}")).code == "BLOB_UNKNOWN"
    assert (await mirror.get(f"/v2/team/app/manifests/{image.digest}")).body == image.manifest


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_tag_that_the_upstream_deleted_is_forgotten(
    mirror: Any, upstream: Any, image: Any, method: Any
) -> None:
    """B36: 404 for a cached tag is 404 here, and no stale answer afterwards, whoever asked first."""
    await mirror.get(TAG)
    upstream.remove_tag("team/app", "1")
    mirror.clock.advance(MAX_AGE + 1)

    assert (await mirror.request(method, TAG)).status == 404

    await upstream.stop()
    mirror.clock.advance(MISSING_MAX_AGE + 1)
    assert (await mirror.get(TAG)).status == 502
    assert (await mirror.get(f"/v2/team/app/manifests/{image.digest}")).body == image.manifest


@pytest.mark.parametrize("status", [401, 403])
async def test_a_denial_is_not_remembered_for_long(
    mirror: Any, upstream: Any, image: Any, status: Any
) -> None:
    """B36: access may be granted at any moment, and a denial is no deletion."""
    await mirror.get(TAG)
    mirror.clock.advance(MAX_AGE + 1)
    refusal = upstream.fault(Status(status), kind="manifest", times=None)
    assert (await mirror.get(TAG)).status == 404
    refusal.remove()

    mirror.clock.advance(DENIED_MAX_AGE + 1)

    response = await mirror.get(TAG)
    assert response.body == image.manifest
    assert response.headers["Cache-Status"] == "regmirror; fwd=stale; fwd-status=200"


async def test_a_denied_tag_is_still_there_when_the_upstream_fails(
    mirror: Any, upstream: Any, image: Any
) -> None:
    """B36: only the upstream's 404 makes a tag forgotten."""
    await pull_image(mirror, image)
    mirror.clock.advance(MAX_AGE + 1)
    upstream.fault(Status(403), kind="manifest", times=None)
    assert (await mirror.get(TAG)).status == 404

    await upstream.stop()
    mirror.clock.advance(DENIED_MAX_AGE + 1)

    assert (await mirror.get(TAG)).body == image.manifest


@pytest.mark.parametrize(
    "fault", [Status(404), Status(405), Status(501), StripHeaders(["Docker-Content-Digest"])]
)
async def test_registries_without_a_usable_head(mirror: Any, upstream: Any, image: Any, fault: Any) -> None:
    """B25, B48: where HEAD does not work or tells too little, GET is asked, on HEAD and revalidation."""
    upstream.fault(fault, kind="manifest", method="HEAD", times=None)

    head = await mirror.head(TAG)
    assert (head.status, head.headers["Docker-Content-Digest"]) == (200, image.digest)
    mirror.clock.advance(MAX_AGE + 1)
    again = await mirror.get(TAG)

    assert again.body == image.manifest
    assert again.headers["Cache-Status"] == "regmirror; fwd=stale; fwd-status=200", "it had not changed"


@pytest.mark.parametrize("said", ["application/json", "text/plain; charset=utf-8", ""])
@pytest.mark.parametrize("reference", ["tag", "digest"])
async def test_a_head_that_names_no_kind_is_not_believed(
    mirror: Any, upstream: Any, image: Any, said: Any, reference: Any
) -> None:
    """B48: HEAD must give the type that GET finds in the document."""
    upstream.fault(SetHeaders({"Content-Type": said}), kind="manifest", times=None)
    path = TAG if reference == "tag" else f"/v2/team/app/manifests/{image.digest}"

    assert (await mirror.head(path)).headers["Content-Type"] == image.media_type
    assert (await mirror.get(path)).headers["Content-Type"] == image.media_type


async def test_two_workers_share_what_they_learn(start_mirror: Any, upstream: Any, image: Any) -> None:
    """B24: what one worker asked, the other need not ask."""
    first = await start_mirror()
    second = await start_mirror(clock=first.clock)
    await second.get("/v2/team/app/manifests/nope")
    await first.get(TAG)
    first.clock.advance(MAX_AGE + 1)
    await first.get(TAG)
    upstream.clear()

    assert (await second.get(TAG)).headers["Cache-Status"] == "regmirror; hit"
    assert upstream.count() == 0
