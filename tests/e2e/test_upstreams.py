"""Several registries of the world through one port, however a client names them."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.e2e.conftest import Images, MakeMirror
from tests.e2e.parts.clients import Containerd, ContainersImage, Dockerd
from tests.e2e.parts.layout import Layout
from tests.e2e.parts.mirror import Mirror
from tests.e2e.parts.tokens import PASSWORD, USER
from tests.e2e.parts.upstream import Upstream

GHCR_SPELLINGS = {
    "ns": "/v2/org/app/{kind}/{reference}?ns=ghcr.io",
    "first component": "/v2/ghcr.io/org/app/{kind}/{reference}",
    "prefix": "/ghcr.io/v2/org/app/{kind}/{reference}",
    "ns and prefix": "/ghcr.io/v2/org/app/{kind}/{reference}?ns=ghcr.io",
}
HUB_SPELLINGS = {
    "default": "/v2/library/app/{kind}/{reference}",
    "without library": "/v2/app/{kind}/{reference}",
    "ns": "/v2/library/app/{kind}/{reference}?ns=docker.io",
    "alias": "/v2/library/app/{kind}/{reference}?ns=registry-1.docker.io",
    "first component": "/v2/docker.io/library/app/{kind}/{reference}",
    "first component without library": "/v2/docker.io/app/{kind}/{reference}",
    "prefix": "/docker.io/v2/library/app/{kind}/{reference}",
}


# A blob is `collapsed` into its own download for the moment between its last byte and its place in the store.
FETCHED = r"fwd=miss"
CACHED = r"hit|collapsed"


def assert_served(mirror: Mirror, spelling: str, layout: Layout, tag: str, cache_status: str) -> None:
    """Request the manifest and a layer in one spelling; both must be correct and come from that upstream."""
    layer = layout.children(layout.root)[-1]
    for kind, reference, descriptor in (("manifests", tag, layout.root), ("blobs", layer["digest"], layer)):
        response = mirror.get(spelling.format(kind=kind, reference=reference))
        assert response.status == 200, response.body
        assert response.body == layout.read(descriptor)
        assert re.search(cache_status, response.headers["Cache-Status"]), response.headers["Cache-Status"]


@pytest.mark.parametrize("first", GHCR_SPELLINGS)
def test_spellings_of_a_named_upstream_share_one_cache_entry(
    mirror: Mirror, hub: Upstream, ghcr: Upstream, images: Images, first: str
) -> None:
    """B58: whichever spelling comes first fetches; all others are hits and cost nothing."""
    assert_served(mirror, GHCR_SPELLINGS[first], images["app"], "1", FETCHED)
    with ghcr.untouched():
        for spelling in GHCR_SPELLINGS.values():
            assert_served(mirror, spelling, images["app"], "1", CACHED)
    assert hub.requests == []


@pytest.mark.parametrize("first", HUB_SPELLINGS)
def test_spellings_of_docker_hub_share_one_cache_entry(
    mirror: Mirror, hub: Upstream, ghcr: Upstream, images: Images, first: str
) -> None:
    """B58: the default upstream, its aliases, and names without `library/` are one repository."""
    assert_served(mirror, HUB_SPELLINGS[first], images["app"], "latest", FETCHED)
    with hub.untouched():
        for spelling in HUB_SPELLINGS.values():
            assert_served(mirror, spelling, images["app"], "latest", CACHED)
    assert ghcr.requests == []


def test_each_client_spells_the_same_image_its_own_way(
    make_dockerd: Callable[[str], Dockerd],
    make_containerd: Callable[[], Containerd],
    make_containers_image: Callable[[], ContainersImage],
    mirror: Mirror,
    ghcr: Upstream,
    images: Images,
) -> None:
    """B24, B58: containerd's `?ns=`, podman's mirror location and docker's long name meet in one entry."""
    digest = images["app"].root["digest"]
    containerd = make_containerd()
    containerd.use_mirror(mirror.url, registry="ghcr.io")
    containerd.pull("ghcr.io/org/app:1")
    assert containerd.digest("ghcr.io/org/app:1") == digest
    with ghcr.untouched():
        podman = make_containers_image()
        podman.use_mirror(f"{mirror.host}/ghcr.io", registry="ghcr.io")
        podman.pull("ghcr.io/org/app:1")
        assert digest in podman.podman("images", "--digests").stdout
        docker = make_dockerd(mirror.url)
        assert digest in docker.docker("pull", f"{mirror.host}/ghcr.io/org/app:1").stdout


def test_an_unknown_registry_is_rejected(mirror: Mirror, hub: Upstream, ghcr: Upstream) -> None:
    """B59: the list of upstreams is closed; a host outside it causes no request."""
    with hub.untouched(), ghcr.untouched():
        for path in ("/v2/org/app/manifests/1?ns=other.example", "/other.example/v2/org/app/manifests/1"):
            response = mirror.get(path)
            assert 400 <= response.status < 500, response.body
            assert response.json()["errors"][0]["code"]


def test_credentials_of_the_configuration_open_private_repositories(
    make_mirror: MakeMirror, hub: Upstream, images: Images
) -> None:
    """B60: a registry that requires a user's token gets one."""
    mirror = make_mirror({"docker.io": {"url": hub.url, "username": USER, "password": PASSWORD}})
    response = mirror.get("/v2/private/app/manifests/latest")
    assert response.body == images["app"].read(images["app"].root)
    assert len(hub.token_requests()) == 1
    assert PASSWORD not in mirror.output()


def test_a_private_repository_of_the_upstream_is_not_found(mirror: Mirror, hub: Upstream) -> None:
    """B34: without credentials the client gets a 404 and never sees upstream's challenge."""
    response = mirror.get("/v2/private/app/manifests/latest")
    assert response.status == 404, response.body
    assert "WWW-Authenticate" not in response.headers
    assert response.json()["errors"][0]["code"]
    assert hub.cost() <= 5, hub.describe()
