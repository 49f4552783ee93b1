"""Which upstream is asked, with what, and who may have what came from it."""

import asyncio
from typing import Any

import pytest

from regmirror.telemetry.events import DownloadEnded
from tests.fake_registry import (
    INDEX,
    MANIFEST,
    FakeRegistry,
    FakeStorage,
    Redirect,
    RedirectLoop,
    SetHeaders,
    Status,
    random_bytes,
)

TAG = "/v2/team/app/manifests/1"
SECRET = "Basic dXNlcjpodW50ZXIy"


@pytest.fixture
def image(upstream: Any) -> Any:
    return upstream.add_image("team/app", "1", [random_bytes(50_000)])


@pytest.fixture
def blob(image: Any) -> Any:
    return f"/v2/team/app/blobs/{image.layer_digests[0]}"


# --- names of upstreams ---


async def test_all_spellings_reach_one_cache_entry(start_mirror: Any, upstream: Any) -> None:
    """B58: default, ``ns``, first component and prefix, aliases, with and without library/."""
    image = upstream.add_image("library/alpine", "3.20", [random_bytes(1000)])
    mirror = await start_mirror(
        {"docker.io": upstream}, upstreams={"docker.io": {"aliases": ["index.docker.io"]}}
    )
    layer = image.layer_digests[0]
    await mirror.get("/v2/library/alpine/manifests/3.20")
    await mirror.get(f"/v2/library/alpine/blobs/{layer}")
    await mirror.events.wait_for(DownloadEnded)
    upstream.clear()

    for name in ("alpine", "library/alpine"):
        for before, after in (
            ("/v2/", ""),
            ("/v2/", "?ns=docker.io"),
            ("/v2/", "?ns=INDEX.docker.io"),
            ("/v2/docker.io/", ""),
            ("/v2/index.docker.io/", ""),
            ("/v2/docker.io/", "?ns=docker.io"),
            ("/docker.io/v2/", ""),
            ("/index.docker.io/v2/", ""),
            ("/docker.io/v2/docker.io/", "?ns=docker.io"),
        ):
            manifest = await mirror.get(f"{before}{name}/manifests/3.20{after}")
            assert manifest.body == image.manifest, (before, name, after)
            assert manifest.headers["Cache-Status"] == "regmirror; hit"
            part = await mirror.get(f"{before}{name}/blobs/{layer}{after}")
            assert part.headers["Cache-Status"] == "regmirror; hit"
    assert upstream.count() == 0


async def test_library_is_added_on_docker_hub_only(start_mirror: Any, upstream: Any) -> None:
    """B58: elsewhere a name of one component is asked for as it is."""
    image = upstream.add_image("app", "1")
    mirror = await start_mirror()

    assert (await mirror.get("/v2/app/manifests/1")).body == image.manifest
    assert upstream.find("manifest")[0].path == "/v2/app/manifests/1"


async def test_the_namespace_is_echoed_where_it_chose(mirror: Any, image: Any, blob: Any) -> None:
    """``OCI-Namespace`` on every kind of answer, streamed ones included, and only if ns decided."""
    paths = (TAG, blob, "/v2/team/app/tags/list", "/v2/team/app/manifests/2")
    for path in paths:
        for method in ("HEAD", "GET"):
            chosen = await mirror.request(method, f"{path}?ns=registry.test")
            assert chosen.headers["OCI-Namespace"] == "registry.test", (method, path)
            assert "OCI-Namespace" not in (await mirror.request(method, path)).headers
        explicit = await mirror.get(path.replace("/v2/", "/registry.test/v2/") + "?ns=a%0d%0aX-Evil:%201")
        assert "OCI-Namespace" not in explicit.headers
        assert explicit.status in (200, 404)


@pytest.mark.parametrize("place", ["ns", "prefix", "component"])
async def test_hosts_that_are_no_upstream_are_refused_without_a_connection(
    start_mirror: Any, upstream: Any, image: Any, place: str
) -> None:
    """B59: unknown, private, malformed, with a user name; also if something listens there."""
    async with FakeRegistry() as victim:
        victim.add_image("team/app", "1")
        mirror = await start_mirror()
        hosts = [
            victim.host,
            f"localhost:{victim.port}",
            f"[::1]:{victim.port}",
            "169.254.169.254",
            "evil.example",
            f"registry.test:{victim.port}",
            f"registry.test@{victim.host}",
            f"user:pw@{victim.host}",
            f"http://{victim.host}",
            f"{victim.host}/team",
            "registry.test%0d%0aHost:%20evil",
            "registry.test%00",
            "registry.test%23",
            "..",
            "%2e%2e",
            "x" * 300,
        ]
        for host in hosts:
            path = {
                "ns": f"{TAG}?ns={host}",
                "prefix": f"/{host}{TAG}",
                "component": f"/v2/{host}/team/app/manifests/1",
            }[place]
            response = await mirror.get(path)
            assert response.status in (400, 403, 404), host
            assert response.code in ("NAME_INVALID", "NAME_UNKNOWN")
        assert (await mirror.get(f"{TAG}?ns=registry.test&ns=other.test")).status == 400
        assert (victim.connections, upstream.connections) == (0, 0)


@pytest.mark.parametrize(
    ("patterns", "allowed", "denied"),
    [
        ({"deny": ["team/secret*"]}, ["team/app"], ["team/secret", "team/secret2"]),
        ({"allow": ["team/*"]}, ["team/app"], ["other/app", "team/app/x"]),
        ({"allow": ["team/**"], "deny": ["team/x/**"]}, ["team/app"], ["team/x/y", "a"]),
        ({"allow": []}, [], ["team/app"]),
    ],
)
async def test_patterns_are_judged_before_the_upstream(
    start_mirror: Any, upstream: Any, image: Any, patterns: Any, allowed: list[str], denied: list[str]
) -> None:
    """B64: what is not allowed is 403 DENIED without a connection, however it is asked for."""
    mirror = await start_mirror(upstreams={"registry.test": patterns})
    digest = image.layer_digests[0]

    for name in denied:
        for tail in ("manifests/1", f"blobs/{digest}", "tags/list", f"referrers/{digest}"):
            for path in (
                f"/v2/{name}/{tail}",
                f"/v2/registry.test/{name}/{tail}",
                f"/registry.test/v2/{name}/{tail}",
            ):
                response = await mirror.get(path)
                assert (response.status, response.code) == (403, "DENIED"), path
    assert upstream.connections == 0
    for name in allowed:
        assert (await mirror.get(f"/v2/{name}/manifests/1")).status == 200


async def test_a_cached_image_is_denied_as_well(start_mirror: Any, upstream: Any, image: Any) -> None:
    """B64: a pattern that was added later holds for what is stored."""
    await (await start_mirror()).get(TAG)
    later = await start_mirror(upstreams={"registry.test": {"deny": ["team/**"]}})

    assert (await later.get(TAG)).status == 403


# --- who asks ---


async def test_the_clients_password_stays_here(
    start_mirror: Any, upstream: Any, image: Any, blob: Any, capfd: Any
) -> None:
    """B65, B66: taken without a challenge, never forwarded, never logged, not even in a redirect."""
    async with FakeStorage(upstream) as storage:
        mirror = await start_mirror()
        paths = ["/v2/", TAG, blob, "/v2/team/app/tags/list", f"/v2/team/app/referrers/{image.digest}"]
        for path in [*paths, "/v2/team/app/manifests/none", "/v2/Bad/tags/list"]:
            for method in ("HEAD", "GET", "PUT"):
                response = await mirror.request(
                    method, path, {"Authorization": SECRET, "Cookie": "a=hunter2"}
                )
                assert response.status != 401
                assert "WWW-Authenticate" not in response.headers
        assert not storage.received_credentials
    assert upstream.count() > 0
    assert {request.authorization for request in upstream.requests} == {None}
    assert not [request for request in upstream.requests if "Cookie" in request.headers]
    logged = "".join(capfd.readouterr())
    assert "/v2/team/app/manifests/1" in logged
    assert SECRET.split()[1] not in logged
    assert "hunter2" not in logged


@pytest.mark.parametrize("authorization", [None, SECRET, "Bearer x", "Basic Og==", "Basic %%%", "Nonsense"])
async def test_the_mirror_challenges_nobody(mirror: Any, upstream: Any, authorization: str | None) -> None:
    """B66: dockerd sends the user's Docker Hub password to any mirror that does."""
    headers = {"Authorization": authorization} if authorization else {}

    for path in ("/v2/", "/v2", "/registry.test/v2/", "/v2/?ns=registry.test"):
        for method in ("GET", "HEAD"):
            response = await mirror.request(method, path, headers)
            assert response.status == 200
            assert "WWW-Authenticate" not in response.headers
            assert response.headers["Docker-Distribution-Api-Version"] == "registry/2.0"
    assert upstream.connections == 0, "and it does not ask the upstream for it"


@pytest.mark.parametrize("method", ["PUT", "POST", "PATCH", "DELETE"])
async def test_a_mirror_takes_no_push(mirror: Any, upstream: Any, image: Any, method: str) -> None:
    """B56: 405 UNSUPPORTED; nothing is stored, and the upstream learns nothing of it."""
    digest = image.digest
    for path in (
        TAG,
        f"/v2/team/app/manifests/{digest}",
        f"/v2/team/app/blobs/{digest}",
        "/v2/team/app/blobs/uploads/",
        "/v2/team/app/blobs/uploads/1234",
        f"/v2/team/app/blobs/uploads/?mount={digest}&from=team/other",
        "/v2/team/app/manifests/1?ns=registry.test",
        "/v2/new/manifests/1",
        "/v2/_catalog",
        "/v2/",
    ):
        url = f"{mirror.url}{path}"
        async with mirror.http.request(method, url, data=b"x" * 100_000) as response:
            assert response.status == 405, path
            assert response.headers["Allow"] == "GET, HEAD"
            assert (await response.json())["errors"][0]["code"] == "UNSUPPORTED"
    assert upstream.connections == 0
    assert (mirror.stored(), mirror.staged()) == (set(), [])


# --- redirects ---


async def test_blobs_are_fetched_from_where_the_registry_says(
    mirror: Any, upstream: Any, image: Any, blob: Any
) -> None:
    """B55: the signed URL byte for byte, without the registry's credentials; HEAD does not go there."""
    async with FakeStorage(upstream) as storage:
        await mirror.get(TAG)
        head = await mirror.head(blob)
        assert head.status == 200
        assert head.headers["Content-Length"] == "50000"
        assert storage.count(method="HEAD") == 0
        storage.clear()

        response = await mirror.get(blob)

        assert response.body == image.layers[0]
        assert "Location" not in response.headers
        assert [request.status for request in storage.requests] == [200]
        assert not storage.received_credentials


async def test_a_signed_url_that_expired_is_asked_for_again(
    mirror: Any, upstream: Any, image: Any, blob: Any
) -> None:
    """B55: 403 from the storage host is no denial."""
    async with FakeStorage(upstream) as storage:
        await mirror.get(TAG)
        storage.fault(Status(403), times=1)

        assert (await mirror.get(blob)).body == image.layers[0]
        assert upstream.count("blob") == 2


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_of_manifests_are_followed(
    mirror: Any, upstream: Any, image: Any, status: int
) -> None:
    """B55: registry.k8s.io redirects them too, relative ones included."""
    upstream.add_manifest("elsewhere", image.manifest, image.media_type, "1")
    upstream.fault(Redirect("/v2/elsewhere/manifests/1", status), kind="manifest", repository="team/app")

    assert (await mirror.get(TAG)).body == image.manifest


@pytest.mark.parametrize("kind", ["manifest", "blob"])
async def test_a_loop_of_redirects_ends(mirror: Any, upstream: Any, image: Any, blob: Any, kind: str) -> None:
    """B55: after ten hops it is the upstream's failure."""
    await mirror.get(f"/v2/team/app/manifests/{image.digest}")
    upstream.clear()
    upstream.fault(RedirectLoop(), kind=kind, times=None)

    response = await mirror.get(TAG if kind == "manifest" else blob)

    assert response.status == 502
    assert 10 <= upstream.count() <= 12
    assert "hop" not in response.body.decode()


@pytest.mark.parametrize(
    "location",
    ["ftp://x/y", "file:///etc/passwd", "http://user:pw@127.0.0.1/", "http://", "\x7f", "http://[::1/x"],
)
async def test_a_redirect_to_what_is_no_address_fails(
    mirror: Any, upstream: Any, image: Any, location: str
) -> None:
    """B55: nothing but http and https, and no user names."""
    upstream.fault(Redirect(location), kind="manifest", times=None)

    response = await mirror.get(TAG)

    assert response.status == 502
    assert "pw" not in response.body.decode()


async def test_what_belongs_to_the_upstream_is_not_relayed(
    mirror: Any, upstream: Any, image: Any, blob: Any
) -> None:
    """B11: nothing of its session, its host or its abilities reaches our clients."""
    foreign = {
        "Set-Cookie": "a=b",
        "X-Registry-Supports-Signatures": "1",
        "Strict-Transport-Security": "max-age=1",
        "Alt-Svc": 'h3=":443"',
        "WWW-Authenticate": "Bearer",
        "Location": "http://upstream/",
        "Server": "upstream",
        "Warning": '299 - "theirs"',
        "Cache-Status": "upstream; hit",
        "Docker-Ratelimit-Source": "1.2.3.4",
    }
    upstream.fault(SetHeaders(foreign), times=None)

    for path in ("/v2/", TAG, blob, "/v2/team/app/tags/list", f"/v2/team/app/referrers/{image.digest}"):
        for method in ("HEAD", "GET"):
            response = await mirror.request(method, path)
            assert response.status == 200
            ours = {"Server", "Cache-Status"}
            assert not set(response.headers) & (foreign.keys() - ours)
            assert "upstream" not in response.headers.get("Server", "") + response.headers.get(
                "Cache-Status", ""
            )


# --- having the bytes is not having the right to them ---


@pytest.fixture
async def private(mirror: Any, upstream: Any, image: Any, blob: Any) -> Any:
    """The mirror holds an image of team/app; the repository ``public`` has nothing of it."""
    upstream.add_image("public", "1", [b"public"])
    await mirror.get(TAG)
    await mirror.get(f"/v2/team/app/manifests/{image.digest}")
    await mirror.get(blob)
    await mirror.events.wait_for(DownloadEnded)
    return mirror


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_blob_is_not_served_under_another_repository(
    private: Any, upstream: Any, image: Any, method: str
) -> None:
    """B67: the upstream is asked whether that repository has it, and says no."""
    upstream.clear()
    for tail in (f"blobs/{image.layer_digests[0]}", f"manifests/{image.digest}"):
        response = await private.request(method, f"/v2/public/{tail}")
        assert response.status == 404
        assert "Content-Range" not in response.headers
        assert "Docker-Content-Digest" not in response.headers
    assert upstream.count("blob", repository="public") == 1
    assert upstream.count("manifest", repository="public") >= 1


async def test_a_blob_that_the_other_repository_has_too_is_not_fetched_twice(
    private: Any, upstream: Any, image: Any
) -> None:
    """B67: one proof that it has the bytes, and the bytes from the store."""
    upstream.add_blob("public", image.layers[0])
    upstream.clear()
    path = f"/v2/public/blobs/{image.layer_digests[0]}"

    responses = await asyncio.gather(*(private.get(path) for _ in range(10)))

    assert {response.body for response in responses} == {image.layers[0]}
    assert [request.method for request in upstream.requests] == ["GET"]
    assert upstream.sent_bytes() <= 64 * 1024


async def test_a_blob_is_not_served_under_another_upstream(
    start_mirror: Any, upstream: Any, image: Any, blob: Any
) -> None:
    """B67: the same name elsewhere is another repository; offline too."""
    async with FakeRegistry() as other:
        other.add_image("team/app", "1", [b"theirs"])
        registries = {"registry.test": upstream, "other.test": other}
        mirror = await start_mirror(registries)
        await mirror.get(TAG)
        await mirror.get(blob)
        await mirror.events.wait_for(DownloadEnded)

        assert (await mirror.get(f"{blob}?ns=other.test")).status == 404
        assert other.count("blob") == 1
        offline = await start_mirror(registries, freshness={"offline": True})
        assert (await offline.get(blob)).status == 200
        assert (await offline.get(f"{blob}?ns=other.test")).status == 404
        assert (await offline.get(f"/v2/other.test/team/app/manifests/{image.digest}")).status == 404


async def test_naming_a_foreign_layer_gives_no_right_to_it(private: Any, upstream: Any, image: Any) -> None:
    """B67: a manifest may name content that lives elsewhere, or any subject."""
    stolen = {"digest": image.layer_digests[0], "size": 50_000, "mediaType": "x/y"}
    foreign = {**stolen, "urls": ["https://example.com/layer"]}
    document = {"schemaVersion": 2, "config": {}, "layers": [foreign], "subject": stolen}
    upstream.add_manifest("public", document, tag="thief")
    assert (await private.get("/v2/public/manifests/thief")).status == 200

    assert (await private.get(f"/v2/public/blobs/{image.layer_digests[0]}")).status == 404


async def test_an_index_of_foreign_manifests_gives_no_right_to_them(
    private: Any, upstream: Any, image: Any
) -> None:
    """B67: some registries accept an index of manifests that they do not have there."""
    child = {"mediaType": MANIFEST, "digest": image.digest, "size": len(image.manifest)}
    upstream.add_manifest("public", {"schemaVersion": 2, "manifests": [child]}, INDEX, tag="thief")
    assert (await private.get("/v2/public/manifests/thief")).status == 200

    assert (await private.get(f"/v2/public/manifests/{image.digest}")).status == 404


async def test_a_manifest_that_another_repository_brought_is_fetched(
    private: Any, upstream: Any, image: Any
) -> None:
    """B67: its bytes are the proof; each of its layers is proven by a part of it, and only once."""
    for data in (image.config, *image.layers):
        upstream.add_blob("public", data)
    upstream.add_manifest("public", image.manifest, tag="same")
    upstream.clear()

    for _ in range(2):
        assert (await private.get(f"/v2/public/manifests/{image.digest}")).body == image.manifest
        assert (await private.get(f"/v2/public/blobs/{image.layer_digests[0]}")).status == 200

    assert [(request.method, request.kind) for request in upstream.requests] == [
        ("GET", "manifest"),
        ("GET", "blob"),
    ]


async def test_a_cold_blob_without_its_manifest_is_asked_for_once(
    mirror: Any, upstream: Any, blob: Any
) -> None:
    """B27, B67: the answer to GET is proof enough, no HEAD goes before it."""
    assert (await mirror.get(blob)).status == 200
    await mirror.events.wait_for(DownloadEnded)
    assert (await mirror.get(blob)).status == 200

    assert [request.method for request in upstream.find("blob")] == ["GET"]


async def test_what_another_repository_is_refused_says_nothing_about_this_one(
    mirror: Any, upstream: Any, image: Any, blob: Any
) -> None:
    """B67: who joined a download that fails for its own repository's sake asks for himself."""
    await mirror.get(TAG)
    hold = upstream.hold(kind="blob", repository="empty")
    refused = asyncio.create_task(mirror.get(f"/v2/empty/blobs/{image.layer_digests[0]}"))
    await hold.wait_for_arrivals()
    pull = asyncio.create_task(mirror.get(blob))
    await mirror.wait_for_started(3)
    hold.release()

    assert (await refused).status == 404
    assert (await pull).body == image.layers[0]


async def test_a_blob_in_flight_is_not_shared_with_those_without_a_claim(
    mirror: Any, upstream: Any, image: Any, blob: Any
) -> None:
    """B67: joining a download needs the same right as reading the store."""
    upstream.add_image("public", "1", [b"public"])
    await mirror.get(TAG)
    pause = upstream.pause(10_000)
    pull = asyncio.create_task(mirror.get(blob))
    await pause.wait_for_arrivals()

    assert (await mirror.get(f"/v2/public/blobs/{image.layer_digests[0]}")).status == 404

    pause.release()
    assert (await pull).body == image.layers[0]


async def test_a_right_that_the_upstream_confirms_outlives_a_restart(
    private: Any, start_mirror: Any, upstream: Any, image: Any
) -> None:
    """B67: what was confirmed once is remembered."""
    upstream.add_blob("public", image.layers[0])
    path = f"/v2/public/blobs/{image.layer_digests[0]}"
    assert (await private.get(path)).status == 200
    await upstream.stop()

    assert (await (await start_mirror()).get(path)).body == image.layers[0]
