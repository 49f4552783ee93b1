"""Pulled images outlive any end of regmirror."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.conftest import Images
from tests.e2e.parts.clients import Containerd
from tests.e2e.parts.mirror import Mirror
from tests.e2e.parts.seal import Origin
from tests.e2e.parts.upstream import Upstream

IMAGE = "docker.io/library/big:latest"


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_pull_after_a_restart_is_warm(
    make_containerd: Callable[[], Containerd],
    mirror: Mirror,
    hub: Upstream,
    origin: Origin,
    images: Images,
    end: str,
) -> None:
    """B7, B24, B32: after SIGTERM and after SIGKILL the image is served from disk, its tag still fresh."""

    def pull_with_an_empty_client() -> None:
        client = make_containerd()
        client.use_mirror(mirror.url, registry="docker.io")
        client.pull(IMAGE)
        assert client.digest(IMAGE) == images["big"].root["digest"]

    pull_with_an_empty_client()
    assert len(hub.blob_gets()) == len(images["big"].blobs()), hub.describe()
    getattr(mirror, end)()
    mirror.start()
    with hub.untouched():
        pull_with_an_empty_client()
    assert origin.requests == []
