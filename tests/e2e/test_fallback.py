"""A mirror that cannot serve must never stop a pull: the client goes to the registry of the image's name."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.conftest import Images, MakeMirror
from tests.e2e.parts.clients import Containerd, ContainersImage, Dockerd
from tests.e2e.parts.layout import digest_of
from tests.e2e.parts.process import LOOPBACK, pick_port
from tests.e2e.parts.recorder import Fault
from tests.e2e.parts.seal import Origin
from tests.e2e.parts.upstream import Upstream

IMAGE = "docker.io/library/multi:latest"
Pull = Callable[[str], str]


@pytest.fixture(params=["dockerd", "containerd", "podman", "skopeo"])
def pull(
    request: pytest.FixtureRequest,
    make_dockerd: Callable[[str], Dockerd],
    make_containerd: Callable[[], Containerd],
    make_containers_image: Callable[[], ContainersImage],
) -> Pull:
    """Pull IMAGE through the mirror at an address, with each client in turn; return text that has the digest.

    containerd tries every host again for every object; the others stay with the host of the manifest.
    So some tests accept any response of the origin, not only its blobs.
    """

    def by_dockerd(host: str) -> str:
        return make_dockerd(f"http://{host}").docker("pull", IMAGE).stdout

    def by_containerd(host: str) -> str:
        client = make_containerd()
        client.use_mirror(f"http://{host}", registry="docker.io", server="https://registry-1.docker.io")
        client.pull(IMAGE)
        return client.digest(IMAGE)

    def by_podman(host: str) -> str:
        client = make_containers_image()
        client.use_mirror(host, registry="docker.io")
        client.pull(IMAGE)
        return client.podman("images", "--digests").stdout

    def by_skopeo(host: str) -> str:
        client = make_containers_image()
        client.use_mirror(host, registry="docker.io")
        client.skopeo("copy", f"docker://{IMAGE}", f"dir:{client.directory / 'copy'}")
        return digest_of(client.raw_manifest(IMAGE))

    pulls: dict[str, Pull] = {
        "dockerd": by_dockerd,
        "containerd": by_containerd,
        "podman": by_podman,
        "skopeo": by_skopeo,
    }
    return pulls[request.param]


def test_a_dead_mirror(pull: Pull, origin: Origin, images: Images) -> None:
    """Nothing listens: the pull goes to the origin. This shows that the stage can show a fallback at all."""
    assert images["multi"].root["digest"] in pull(f"{LOOPBACK}:{pick_port()}")
    assert origin.blob_gets() != []


def test_a_mirror_whose_upstream_lacks_the_image(
    pull: Pull, make_mirror: MakeMirror, ghcr: Upstream, origin: Origin, images: Images
) -> None:
    """B34, B86: regmirror responds 404 for the manifest, in a form from which every client falls back."""
    mirror = make_mirror({"docker.io": {"url": ghcr.url}})
    assert images["multi"].root["digest"] in pull(mirror.host)
    assert ghcr.requests != []
    assert ghcr.with_content() == []
    assert origin.with_content() != []


@pytest.mark.parametrize("status", [500, 503])
def test_a_mirror_whose_upstream_fails(
    pull: Pull, make_mirror: MakeMirror, hub: Upstream, origin: Origin, images: Images, status: int
) -> None:
    """B34, B86: regmirror reports the failure at the manifest, before any client is committed to it."""
    hub.faults.append(Fault(r"/manifests/", status=status))
    mirror = make_mirror({"docker.io": {"url": hub.url}})
    assert images["multi"].root["digest"] in pull(mirror.host)
    assert hub.requests != []
    assert origin.with_content() != []


def test_clients_fall_back_when_the_upstream_is_down(
    pull: Pull, make_mirror: MakeMirror, hub: Upstream, origin: Origin, images: Images
) -> None:
    """B34, B86: no process listens at the upstream's address."""
    mirror = make_mirror({"docker.io": {"url": f"http://{LOOPBACK}:{pick_port()}"}})
    assert images["multi"].root["digest"] in pull(mirror.host)
    assert hub.requests == []
    assert origin.blob_gets() != []


def test_clients_fall_back_when_a_proxy_of_the_mirror_responds_503(
    pull: Pull, hub: Upstream, origin: Origin, images: Images
) -> None:
    """B86: a mirror being restarted behind a load balancer: everything is 503, the first ping too."""
    hub.faults.append(Fault("", status=503))
    assert images["multi"].root["digest"] in pull(hub.host)
    assert hub.requests != []
    assert origin.blob_gets() != []


@pytest.mark.parametrize("pull", ["dockerd", "containerd"], indirect=True)
def test_a_blob_that_the_upstream_rejects(
    pull: Pull, make_mirror: MakeMirror, hub: Upstream, origin: Origin, images: Images
) -> None:
    """B86: docker and containerd fall back for a blob too, as long as it fails before its first byte."""
    hub.faults.append(Fault(r"/blobs/", status=500))
    mirror = make_mirror({"docker.io": {"url": hub.url}})
    assert images["multi"].root["digest"] in pull(mirror.host)
    assert hub.with_content() != []
    assert origin.blob_gets() != []
