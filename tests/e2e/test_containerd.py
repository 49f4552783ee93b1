"""containerd with `hosts.toml`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from tests.e2e.conftest import Images
from tests.e2e.parts.clients import Containerd
from tests.e2e.parts.images import NATIVE
from tests.e2e.parts.layout import Layout
from tests.e2e.parts.mirror import Mirror
from tests.e2e.parts.seal import Origin
from tests.e2e.parts.upstream import Upstream

MakeContainerd = Callable[[], Containerd]


def pull_fresh(make_containerd: MakeContainerd, mirror: Mirror, registry: str, image: str) -> str:
    """Pull with a containerd that has nothing yet, and return the digest it got."""
    daemon = make_containerd()
    daemon.use_mirror(mirror.url, registry=registry)
    daemon.pull(image)
    return daemon.digest(image)


def assert_cold_cost(upstream: Upstream, layout: Layout) -> None:
    """B27: the upstream requests of one cold pull for this platform."""
    blobs = {each["digest"] for each in layout.blobs(layout.for_platform(NATIVE))}
    assert Counter(upstream.blob_gets()) == Counter(blobs), upstream.describe()
    assert len(upstream.token_requests()) == 1
    assert upstream.cost() <= len(blobs) + 5, upstream.describe()


@pytest.mark.parametrize("name", ["multi", "zstd"])
def test_docker_hub_through_its_own_hosts_file(
    make_containerd: MakeContainerd, mirror: Mirror, hub: Upstream, origin: Origin, images: Images, name: str
) -> None:
    """B24, B27: a cold pull by `?ns=docker.io` costs little, a warm one by another node nothing."""
    image = f"docker.io/library/{name}:latest"
    digest = images[name].root["digest"]
    assert pull_fresh(make_containerd, mirror, "docker.io", image) == digest
    assert_cold_cost(hub, images[name])
    with hub.untouched():
        assert pull_fresh(make_containerd, mirror, "docker.io", image) == digest
    assert origin.requests == []


def test_another_registry_through_the_default_hosts_file(
    make_containerd: MakeContainerd,
    mirror: Mirror,
    hub: Upstream,
    ghcr: Upstream,
    origin: Origin,
    images: Images,
) -> None:
    """B27, B58: with `_default/hosts.toml` one mirror serves a registry it learns from `?ns=`."""
    image = "ghcr.io/org/app:1"
    digest = images["app"].root["digest"]
    assert pull_fresh(make_containerd, mirror, "_default", image) == digest
    assert_cold_cost(ghcr, images["app"])
    assert [seen for seen in ghcr.requests if "ns=" in seen.target] == []
    with ghcr.untouched():
        assert pull_fresh(make_containerd, mirror, "_default", image) == digest
    assert hub.requests == []
    assert origin.requests == []
