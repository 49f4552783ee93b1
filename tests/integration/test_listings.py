"""Tags, referrers and the catalog, page by page."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

from tests.fake_registry import (
    INDEX,
    DropBeforeResponse,
    FakeRegistry,
    Html,
    Redirect,
    SetHeaders,
    Status,
)

LIST = "/v2/team/app/tags/list"
TAGS = [f"{number:03}" for number in range(25)]
MAX_AGE = 300  # seconds: the default of freshness.tag_max_age
NOTHING = "sha256:" + "0" * 64
SBOM, SIGNATURE = "application/vnd.example.sbom", "application/vnd.example.signature"


@pytest.fixture
def image(upstream: Any) -> Any:
    image = upstream.add_image("team/app")
    for tag in TAGS:
        upstream.move_tag("team/app", tag, image.digest)
    return image


def next_of(response: Any) -> Any:
    """The path that ``Link`` leads to, or None."""
    link = response.headers.get("Link")
    if link is None:
        return None
    match = re.fullmatch(r'<([^>]+)>; rel="next"', link)
    assert match, link
    return match[1]


async def pages(mirror: Any, path: Any) -> Any:
    """Every page from ``path`` on, as clients walk them."""
    found = []
    following = path
    while following is not None:
        response = await mirror.get(following)
        assert response.status == 200
        found.append(next(value for value in response.json().values() if isinstance(value, list)))
        following = next_of(response)
        assert len(found) < 50
    return found


# --- tags ---


async def test_the_tags_are_all_there(mirror: Any, image: Any) -> None:
    """B53: sorted, on one page unless asked otherwise, and as JSON without a charset."""
    response = await mirror.get(LIST)

    assert response.json() == {"name": "team/app", "tags": TAGS}
    assert response.headers["Content-Type"] == "application/json"
    assert next_of(response) is None


async def test_pages_of_tags(mirror: Any, image: Any) -> None:
    """B53: ``last`` is exclusive and need not exist; an empty list is ``[]``."""
    for query, tags, has_next in (
        ("n=0", [], False),
        ("n=1", TAGS[:1], True),
        ("n=24", TAGS[:24], True),
        ("n=25", TAGS, False),
        ("n=10000", TAGS, False),
        ("n=999999999", TAGS, False),
        ("n=2&last=010", ["011", "012"], True),
        ("last=010", TAGS[11:], False),
        ("last=0105", TAGS[11:], False),
        ("last=024", [], False),
        ("n=5&last=zzz", [], False),
        ("last=", TAGS, False),
    ):
        response = await mirror.get(f"{LIST}?{query}")

        assert (response.status, response.json()["tags"]) == (200, tags), query
        assert (next_of(response) is not None) is has_next, query


async def test_a_number_that_is_none(mirror: Any, upstream: Any, image: Any) -> None:
    """B53: 400 PAGINATION_NUMBER_INVALID, without asking anybody."""
    for n in ("-1", "NaN", "abc", "1.5", "", "%00", "%C2%B2", "1e3", "9" * 30, "0x1"):
        response = await mirror.get(f"{LIST}?n={n}")

        assert (response.status, response.code) == (400, "PAGINATION_NUMBER_INVALID"), n
    assert upstream.count() == 0


@pytest.mark.parametrize(
    "path",
    [
        "/v2/team/app/tags/list?n=10",
        "/v2/team/app/tags/list?n=10&ns=registry.test",
        "/v2/registry.test/team/app/tags/list?n=10",
        "/registry.test/v2/team/app/tags/list?n=10",
    ],
)
async def test_links_lead_through_the_mirror_as_the_client_spells_it(
    mirror: Any, image: Any, path: Any
) -> None:
    """B53: the way from page to page keeps ``ns``, prefix or component, and ends."""
    assert await pages(mirror, path) == [TAGS[:10], TAGS[10:20], TAGS[20:]]

    link = next_of(await mirror.get(path))
    assert link.startswith(path.partition("?")[0] + "?")
    assert ("ns=registry.test" in link) is ("ns=" in path)


async def test_the_upstreams_pages_are_followed_on_the_upstream(
    mirror: Any, upstream: Any, image: Any
) -> None:
    """B53: ten at a time, from a registry that names itself by another host; kept for a while."""
    upstream.page_size = 10
    async with FakeRegistry() as other:
        link = f"<{other.url}/v2/team/app/tags/list?n=10&last=009>; rel=next"
        upstream.fault(SetHeaders({"Link": link}), kind="tags", times=1)

        assert (await mirror.get(LIST)).json()["tags"] == TAGS
        assert other.connections == 0
    assert upstream.count("tags") == 3
    assert (await mirror.get(f"{LIST}?n=1")).json()["tags"] == TAGS[:1]
    assert upstream.count("tags") == 3


@pytest.mark.parametrize(
    "target", ["{path}?n=1000", "{path}?{query}", "/v2/other/tags/list?n=1", "https://evil.example/v2/"]
)
async def test_a_loop_of_pages_ends(mirror: Any, upstream: Any, image: Any, target: Any) -> None:
    """B53: a page that leads to itself, or away, is the last."""

    link = target.format(path=LIST, query="n=1000")
    upstream.fault(SetHeaders({"Link": f'<{link}>; rel="next"'}), kind="tags", times=None)

    response = await mirror.get(LIST)

    assert response.json()["tags"] == TAGS
    assert "evil" not in response.headers.get("Link", "")
    assert upstream.count("tags") <= 2


@pytest.mark.parametrize("tags", ["null", "[]", "{}", "absent"])
async def test_no_tags_are_an_empty_list(mirror: Any, upstream: Any, image: Any, tags: Any) -> None:
    """B53: ``[]``, never null, whatever the upstream writes."""
    body = b"{}" if tags == "absent" else f'{{"name":"x","tags":{tags}}}'.encode()
    upstream.fault(Status(200, {"Content-Type": "application/json"}, body), kind="tags", times=None)

    response = await mirror.get(LIST)

    assert response.status == 200
    assert json.loads(response.body) == {"name": "team/app", "tags": []}


async def test_many_who_ask_for_tags_ask_once(mirror: Any, upstream: Any, image: Any) -> None:
    gate = upstream.hold("tags")
    asked = [asyncio.create_task(mirror.get(LIST)) for _ in range(20)]
    await gate.wait_for_arrivals()
    gate.release()

    assert {response.body for response in await asyncio.gather(*asked)} == {(await mirror.get(LIST)).body}
    assert upstream.count("tags") == 1


async def test_tags_move(mirror: Any, upstream: Any, image: Any) -> None:
    """A list is as old as a tag may be."""
    await mirror.get(LIST)
    upstream.move_tag("team/app", "new", image.digest)
    assert "new" not in (await mirror.get(LIST)).json()["tags"]
    mirror.clock.advance(MAX_AGE + 1)

    assert "new" in (await mirror.get(LIST)).json()["tags"]


@pytest.mark.parametrize("fault", [Status(500), Status(429), Html(), DropBeforeResponse(reset=True)])
async def test_tags_outlive_their_upstreams_failure(
    mirror: Any, upstream: Any, image: Any, fault: Any
) -> None:
    """B33: the list of before, said to be stale."""
    await mirror.get(LIST)
    mirror.clock.advance(MAX_AGE + 1)
    upstream.fault(fault, kind="tags", times=None)

    response = await mirror.get(LIST)

    assert response.json()["tags"] == TAGS
    assert response.headers["Warning"].startswith('299 - "registry.test')


async def test_tags_that_are_known_stand_in_after_a_restart(
    mirror: Any, start_mirror: Any, upstream: Any, image: Any
) -> None:
    """B33: then those that were pulled are all that is known."""
    await mirror.get("/v2/team/app/manifests/007")
    await upstream.stop()
    later = await start_mirror()

    assert (await later.get(LIST)).json()["tags"] == ["007"]
    assert (await later.get("/v2/team/new/tags/list")).status == 502


async def test_stored_tags_come_in_pages_as_well(
    mirror: Any, upstream: Any, image: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B53, B100: no more of them are read than a page has, also where nobody chose its size."""
    monkeypatch.setattr("regmirror.mirror.listings.STORED_MAX", 3)
    for tag in TAGS[:7]:
        await mirror.get(f"/v2/team/app/manifests/{tag}")
    await mirror.reload(freshness={"offline": True})
    assert await pages(mirror, f"{LIST}?n=4") == [TAGS[:4], TAGS[4:7]]
    assert await pages(mirror, LIST) == [TAGS[:3], TAGS[3:6], TAGS[6:7]]
    response = await mirror.get(f"{LIST}?last=zzz")
    assert (response.status, response.json()["tags"], next_of(response)) == (200, [], None)
    assert (await mirror.get("/v2/team/none/tags/list?last=a")).code == "NAME_UNKNOWN"


async def test_the_last_page_of_stored_tags_is_no_failure(mirror: Any, upstream: Any, image: Any) -> None:
    """B33: a client that asks until nothing more comes."""
    await mirror.get("/v2/team/app/manifests/007")
    upstream.fault(Status(500), kind="tags", times=None)
    response = await mirror.get(f"{LIST}?n=10&last=007")
    assert (response.status, response.json()["tags"]) == (200, [])


async def test_an_unknown_repository_has_no_tags(mirror: Any, image: Any) -> None:
    response = await mirror.get("/v2/team/none/tags/list")

    assert (response.status, response.code) == (404, "NAME_UNKNOWN")


# --- referrers ---


@pytest.fixture
def referrers(upstream: Any, image: Any) -> Any:
    """The digests of an SBOM and a signature of the image."""
    return {
        SBOM: upstream.add_referrer("team/app", image.digest, SBOM, annotations={"a": "b"}),
        SIGNATURE: upstream.add_referrer("team/app", image.digest, SIGNATURE),
    }


@pytest.fixture
def path(image: Any) -> Any:
    return f"/v2/team/app/referrers/{image.digest}"


def digests(response: Any) -> Any:
    assert response.status == 200
    assert response.headers["Content-Type"] == INDEX
    document = response.json()
    assert (document["schemaVersion"], document["mediaType"]) == (2, INDEX)
    return [item["digest"] for item in document["manifests"]]


async def test_referrers_are_the_upstreams(mirror: Any, upstream: Any, referrers: Any, path: Any) -> None:
    """B54: an OCI index of the exact type, kept for a moment."""
    response = await mirror.get(path)

    assert digests(response) == list(referrers.values())
    assert response.json()["manifests"][0]["annotations"] == {"a": "b"}
    assert "OCI-Filters-Applied" not in response.headers
    await mirror.get(path)
    assert upstream.count("referrers") == 1
    mirror.clock.advance(61)
    await mirror.get(path)
    assert upstream.count("referrers") == 2


@pytest.mark.parametrize(
    ("types", "expected"), [([SBOM], 1), ([SIGNATURE], 1), ([SBOM, SIGNATURE], 2), (["application/x"], 0)]
)
async def test_referrers_are_filtered_here(
    mirror: Any, upstream: Any, referrers: Any, path: Any, types: Any, expected: Any
) -> None:
    """B54: by one or several types, with the header that says so; one list serves all filters."""
    response = await mirror.get(path + "?" + "&".join(f"artifactType={kind}" for kind in types))

    assert len(digests(response)) == expected
    assert {item["artifactType"] for item in response.json()["manifests"]} <= set(types)
    assert response.headers["OCI-Filters-Applied"] == "artifactType"
    await mirror.get(path)
    assert upstream.count("referrers") == 1


async def test_nothing_refers_to_what_nobody_knows(mirror: Any, image: Any) -> None:
    """B54: an empty index, never 404."""
    assert digests(await mirror.get(f"/v2/team/app/referrers/{NOTHING}")) == []
    assert (await mirror.get("/v2/team/app/referrers/sha256:x")).code == "DIGEST_INVALID"


@pytest.mark.parametrize(
    "fault",
    [
        Status(404, {}, b"<html>not found</html>"),
        Status(400),
        Status(403),
        Status(405),
        Status(406),
        Status(501),
        Html(),
        Redirect("https://evil.example/login", 303),
    ],
)
async def test_the_tag_schema_stands_in_for_the_api(
    mirror: Any, upstream: Any, image: Any, referrers: Any, path: Any, fault: Any
) -> None:
    """B54: 404, a page, a redirect: the fallback tag is asked for instead."""
    upstream.add_referrers_tag("team/app", image.digest)
    upstream.fault(fault, kind="referrers", times=None)

    assert digests(await mirror.get(path)) == list(referrers.values())
    assert upstream.count("manifest", reference=image.digest.replace(":", "-")) >= 1
    assert len(digests(await mirror.get(f"{path}?artifactType={SBOM}"))) == 1


async def test_without_api_and_tag_nothing_refers(mirror: Any, upstream: Any, path: Any) -> None:
    """B54: most images have neither; that is no error and not asked for again at once."""
    upstream.has_referrers = False

    assert digests(await mirror.get(path)) == []
    asked = upstream.count()
    assert digests(await mirror.get(path)) == []
    assert upstream.count() == asked


@pytest.mark.parametrize("manifests", ['"x"', '{"a": 1}', "null", "[1, null, {}]"])
@pytest.mark.parametrize("way", ["api", "tag"])
async def test_lists_that_are_none_are_passed_over(
    mirror: Any, upstream: Any, image: Any, path: Any, manifests: Any, way: Any
) -> None:
    """B54: nonsense where a list should be is an empty list or the upstream's failure, not ours."""
    body = f'{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":{manifests}}}'.encode()
    if way == "api":
        upstream.fault(Status(200, {"Content-Type": INDEX}, body), kind="referrers", times=None)
    else:
        upstream.has_referrers = False
        upstream.add_manifest("team/app", body, INDEX, image.digest.replace(":", "-"))

    response = await mirror.get(path)

    assert response.status in (200, 502)
    assert response.status == 502 or all(isinstance(item, dict) for item in response.json()["manifests"])


async def test_referrers_of_what_is_stored_are_known_without_upstream(
    mirror: Any, start_mirror: Any, upstream: Any, referrers: Any, path: Any
) -> None:
    """B54, B32: those that were pulled, with type and annotations."""
    await mirror.get(f"/v2/team/app/manifests/{referrers[SBOM]}")
    await upstream.stop()

    later = await start_mirror()

    response = await later.get(path)
    assert digests(response) == [referrers[SBOM]]
    described = response.json()["manifests"][0]
    assert (described["artifactType"], described["annotations"]) == (SBOM, {"a": "b"})


@pytest.mark.parametrize("has_api", [True, False])
async def test_lists_take_no_more_memory_than_is_for_them(
    mirror: Any, upstream: Any, image: Any, monkeypatch: pytest.MonkeyPatch, has_api: Any
) -> None:
    """B100: of the API and of the tag schema, in bytes and not in number."""
    monkeypatch.setattr(mirror.worker._resources.lists, "_limit", 300_000)
    body = json.dumps(
        {"schemaVersion": 2, "mediaType": INDEX, "manifests": [{"annotations": {"a": "x" * 100_000}}]}
    ).encode()
    upstream.has_referrers = has_api
    kind = "referrers" if has_api else "manifest"
    upstream.fault(Status(200, {"Content-Type": INDEX}, body), kind=kind, times=None)
    for number in range(10):
        response = await mirror.get(f"/v2/team/app/referrers/sha256:{number:064}")
        assert len(response.json()["manifests"]) == 1
    kept = mirror.worker._resources.lists
    assert 100_000 < kept.weight <= 300_000
    assert 0 < len(kept) <= 3


# --- the catalog ---


async def test_the_catalog_lists_what_is_stored(start_mirror: Any, upstream: Any) -> None:
    """Each name as it can be pulled from here; pages as with tags."""
    async with FakeRegistry() as other:
        mirror = await start_mirror({"registry.test": upstream, "other.test": other})
        for registry, host in ((upstream, "registry.test"), (other, "other.test")):
            for name in ("a", "b/c", "d"):
                registry.add_image(name, "1")
                assert (await mirror.get(f"/v2/{host}/{name}/manifests/1")).status == 200
        upstream.add_image("never-pulled", "1")

        everything = ["a", "b/c", "d", "other.test/a", "other.test/b/c", "other.test/d"]
        assert (await mirror.get("/v2/_catalog")).json() == {"repositories": everything}
        assert await pages(mirror, "/v2/_catalog?n=4") == [everything[:4], everything[4:]]
        assert await pages(mirror, "/v2/_catalog?n=2&ns=other.test") == [["a", "b/c"], ["d"]]
        assert await pages(mirror, "/other.test/v2/_catalog?n=2") == [["a", "b/c"], ["d"]]
        assert (await mirror.get("/v2/_catalog?n=-1")).code == "PAGINATION_NUMBER_INVALID"
        for name in everything:
            assert (await mirror.get(f"/v2/{name}/manifests/1")).status == 200


async def test_an_empty_catalog_is_an_empty_list(mirror: Any, upstream: Any) -> None:
    assert (await mirror.get("/v2/_catalog")).json() == {"repositories": []}
    assert upstream.connections == 0
