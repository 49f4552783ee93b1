"""podman and skopeo with `registries.conf`: whole images compared byte for byte."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Images
from tests.e2e.parts.clients import ContainersImage
from tests.e2e.parts.images import NATIVE
from tests.e2e.parts.layout import Layout, digest_of, is_manifest
from tests.e2e.parts.mirror import Mirror
from tests.e2e.parts.seal import Origin
from tests.e2e.parts.upstream import Upstream

MakeContainersImage = Callable[[], ContainersImage]


def assert_copied(layout: Layout, files: list[Path]) -> None:
    """B1: the files are exactly the content of the image."""
    expected = {each["digest"] for each in layout.walk()}
    copied = {digest_of(file.read_bytes()) for file in files}
    assert expected - copied == set()
    for file in files:
        digest = digest_of(file.read_bytes())
        assert digest in expected, file.name
        assert file.read_bytes() == layout.read_digest(digest)


def test_podman_pulls_cold_and_warm(
    make_containers_image: MakeContainersImage, mirror: Mirror, hub: Upstream, origin: Origin, images: Images
) -> None:
    """B24, B27, B58: the mirror's location names the upstream as first path component."""
    layout = images["multi"]
    blobs = {each["digest"] for each in layout.blobs(layout.for_platform(NATIVE))}
    cold, warm = make_containers_image(), make_containers_image()
    for client in (cold, warm):
        client.use_mirror(f"{mirror.host}/docker.io", registry="docker.io")
    cold.pull("docker.io/library/multi:latest")
    assert Counter(hub.blob_gets()) == Counter(blobs), hub.describe()
    assert len(hub.token_requests()) == 1
    assert hub.cost() <= len(blobs) + 5, hub.describe()
    with hub.untouched():
        warm.pull("docker.io/library/multi:latest")
    assert layout.root["digest"] in warm.podman("images", "--digests").stdout
    assert origin.requests == []


def test_skopeo_copies_a_whole_index(
    make_containers_image: MakeContainersImage,
    mirror: Mirror,
    hub: Upstream,
    origin: Origin,
    images: Images,
    tmp_path: Path,
) -> None:
    """B1, B27: every platform and attestation arrives with upstream's digest, each blob fetched once."""
    layout = images["multi"]
    client = make_containers_image()
    client.use_mirror(mirror.host, registry="docker.io")
    copy = tmp_path / "copy"
    client.skopeo("copy", "--all", "--preserve-digests", "docker://multi:latest", f"oci:{copy}:latest")
    assert_copied(layout, list((copy / "blobs" / "sha256").iterdir()))
    assert client.raw_manifest("multi:latest") == layout.read(layout.root)
    assert Counter(hub.blob_gets()) == Counter(each["digest"] for each in layout.blobs()), hub.describe()
    assert origin.requests == []


def test_skopeo_copies_a_docker_manifest_list(
    make_containers_image: MakeContainersImage, mirror: Mirror, origin: Origin, images: Images, tmp_path: Path
) -> None:
    """B1: Docker's own media types; an OCI layout cannot hold them, a plain directory can."""
    layout = images["dlist"]
    client = make_containers_image()
    client.use_mirror(mirror.host, registry="docker.io")
    copy = tmp_path / "copy"
    client.skopeo("copy", "--all", "--preserve-digests", "docker://dlist:latest", f"dir:{copy}")
    assert_copied(layout, [file for file in copy.iterdir() if file.name != "version"])
    assert client.raw_manifest("dlist:latest") == layout.read(layout.root)
    assert origin.requests == []


@pytest.mark.parametrize("name", ["artifact", "dlist", "empty", "multi", "nested", "zstd"])
def test_every_object_is_upstreams_byte_for_byte(mirror: Mirror, images: Images, name: str) -> None:
    """B1, B51: content that no present client copies, too; cold and warm; with its exact media type."""
    layout = images[name]
    for _ in ("cold", "warm"):
        tagged = mirror.get(f"/v2/library/{name}/manifests/latest")
        assert tagged.headers["Docker-Content-Digest"] == layout.root["digest"]
        for descriptor in layout.walk():
            kind = "manifests" if is_manifest(descriptor) else "blobs"
            response = mirror.get(f"/v2/library/{name}/{kind}/{descriptor['digest']}")
            assert response.status == 200, response.body
            assert response.body == layout.read(descriptor)
            assert response.headers["Content-Length"] == str(descriptor["size"])
            assert response.headers["Docker-Content-Digest"] == descriptor["digest"]
            if is_manifest(descriptor):
                assert response.headers["Content-Type"] == descriptor["mediaType"]
