"""An upstream over TLS whose certificate comes from an authority of the operator's own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme

from tests.e2e.conftest import Images, MakeMirror
from tests.e2e.parts.clients import ContainersImage
from tests.e2e.parts.process import LOOPBACK
from tests.e2e.parts.registry import Registry
from tests.e2e.parts.seal import Origin, server_context
from tests.e2e.parts.upstream import Upstream

MakeContainersImage = Callable[[], ContainersImage]


@pytest.fixture
def authority() -> trustme.CA:
    """A private certificate authority."""
    return trustme.CA()


@pytest.fixture
def private(authority: trustme.CA, images: Images, tmp_path: Path, resources: ExitStack) -> Upstream:
    """A registry and a token server that use TLS with certificates of that authority."""
    tls = server_context(authority, LOOPBACK)
    registry = Registry(tmp_path, tls=tls)
    resources.callback(registry.stop)
    registry.wait_ready()
    registry.push(images["multi"], "library/multi", "latest")
    upstream = Upstream(registry, tls=tls)
    resources.callback(upstream.stop)
    return upstream


def test_a_ca_file_makes_the_upstream_trusted(
    make_containers_image: MakeContainersImage,
    make_mirror: MakeMirror,
    private: Upstream,
    authority: trustme.CA,
    origin: Origin,
    images: Images,
    tmp_path: Path,
) -> None:
    """B63: `ca_file` of the upstream applies to its token server, too."""
    ca_file = tmp_path / "private-ca.pem"
    authority.cert_pem.write_to_path(ca_file)
    mirror = make_mirror({"docker.io": {"url": private.url, "ca_file": str(ca_file)}})
    client = make_containers_image()
    client.use_mirror(mirror.host, registry="docker.io")
    client.skopeo("copy", "docker://multi:latest", f"oci:{tmp_path / 'copy'}:latest")
    assert origin.requests == []
    assert private.blob_gets() != []
    assert client.raw_manifest("multi:latest") == images["multi"].read(images["multi"].root)


def test_without_a_ca_file_the_upstream_is_not_trusted(make_mirror: MakeMirror, private: Upstream) -> None:
    """B38, B63: no request is sent, and the error names the reason."""
    mirror = make_mirror({"docker.io": {"url": private.url}})
    response = mirror.get("/v2/library/multi/manifests/latest")
    assert response.status == 502, response.body
    assert "certificate" in response.body.decode().lower()
    assert private.requests == []
