"""A real Docker daemon with `registry-mirrors`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from tests.e2e.conftest import Images
from tests.e2e.parts.clients import Dockerd
from tests.e2e.parts.images import NATIVE
from tests.e2e.parts.mirror import Mirror
from tests.e2e.parts.seal import Origin
from tests.e2e.parts.upstream import Upstream

MakeDockerd = Callable[[str], Dockerd]


def test_a_cold_pull_asks_upstream_once_per_object(
    make_dockerd: MakeDockerd, mirror: Mirror, hub: Upstream, origin: Origin, images: Images
) -> None:
    """B26, B27: each blob once, one token, no HEAD of a blob, at most B + 5 requests for B blobs."""
    layout = images["multi"]
    blobs = {each["digest"] for each in layout.blobs(layout.for_platform(NATIVE))}
    make_dockerd(mirror.url).docker("pull", "multi")
    assert Counter(hub.blob_gets()) == Counter(blobs), hub.describe()
    assert len(hub.token_requests()) == 1
    assert [
        request for request in hub.requests if request.method == "HEAD" and "/blobs/" in request.target
    ] == []
    assert hub.cost() <= len(blobs) + 5, hub.describe()
    assert origin.requests == []


def test_a_pulled_image_is_served_and_runs_without_its_upstream(
    make_dockerd: MakeDockerd, mirror: Mirror, hub: Upstream, origin: Origin, images: Images
) -> None:
    """B24, B32: within the max age of the tag a second pull needs no upstream at all."""
    daemon = make_dockerd(mirror.url)
    daemon.docker("pull", "multi")
    daemon.docker("rmi", "multi")
    with hub.untouched(), hub.down():
        daemon.docker("pull", "multi")
    digests = daemon.docker("image", "inspect", "--format", "{{json .RepoDigests}}", "multi").stdout
    assert images["multi"].root["digest"] in digests
    program = ["sh", "-c", "echo pulled through the mirror"]
    said = daemon.docker("run", "--rm", "--network", "none", "multi", *program)
    assert said.stdout == "pulled through the mirror\n"
    assert origin.requests == []


def test_a_manifest_list_pulled_by_digest_and_by_the_name_of_the_mirror(
    make_dockerd: MakeDockerd, mirror: Mirror, hub: Upstream, images: Images
) -> None:
    """B1, B58: `docker pull MIRROR/docker.io/library/x@…` and the mirrored name share one cache entry."""
    daemon = make_dockerd(mirror.url)
    digest = images["dlist"].root["digest"]
    daemon.docker("pull", f"{mirror.host}/docker.io/library/dlist@{digest}")
    daemon.docker("rmi", f"{mirror.host}/docker.io/library/dlist@{digest}")
    with hub.untouched():
        said = daemon.docker("pull", f"dlist@{digest}")
    assert digest in said.stdout
