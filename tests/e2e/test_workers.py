"""Several worker processes on one port and one store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.e2e.conftest import Images, MakeMirror
from tests.e2e.parts.clients import Containerd, ContainersImage
from tests.e2e.parts.recorder import Fault
from tests.e2e.parts.seal import Origin
from tests.e2e.parts.upstream import Upstream

IMAGE = "docker.io/library/big:latest"
WORKERS = 2


def test_two_clients_pull_a_cold_image_at_once_over_two_workers(
    make_containerd: Callable[[], Containerd],
    make_containers_image: Callable[[], ContainersImage],
    make_mirror: MakeMirror,
    hub: Upstream,
    origin: Origin,
    images: Images,
) -> None:
    """B13: whichever worker a client meets, each blob is fetched once."""
    # Slow enough that the second request comes during the first fetch.
    hub.faults.append(Fault(r"GET .*/blobs/", delay=1))
    mirror = make_mirror({"docker.io": {"url": hub.url}}, workers=WORKERS)
    containerd, podman = make_containerd(), make_containers_image()
    containerd.use_mirror(mirror.url, registry="docker.io")
    podman.use_mirror(mirror.host, registry="docker.io")
    with ThreadPoolExecutor() as pool:
        for pull in [pool.submit(client.pull, IMAGE) for client in (containerd, podman)]:
            pull.result()
    digest = images["big"].root["digest"]
    assert containerd.digest(IMAGE) == digest
    assert digest in podman.podman("images", "--digests").stdout
    blobs = [each["digest"] for each in images["big"].blobs()]
    # Each worker discovers the authentication by itself: some first responses are challenges.
    assert Counter(hub.blobs_sent()) == Counter(blobs), hub.describe()
    assert len(hub.token_requests()) <= WORKERS

    assert origin.requests == []
