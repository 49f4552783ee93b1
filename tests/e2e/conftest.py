"""The stage: sample images and registries once per session, everything that remembers once per test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.parts.clients import Containerd, ContainersImage, Dockerd
from tests.e2e.parts.images import make_images
from tests.e2e.parts.layout import Layout
from tests.e2e.parts.mirror import Mirror, Tables
from tests.e2e.parts.registry import Registry
from tests.e2e.parts.seal import Origin
from tests.e2e.parts.upstream import Upstream

PROGRAMS = (
    "busybox",
    "containerd",
    "ctr",
    "docker",
    "docker-registry",
    "dockerd",
    "podman",
    "prometheus",
    "promtool",
    "runc",
    "skopeo",
    "unshare",
)
SBIN = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"

Images = dict[str, Layout]
MakeMirror = Callable[..., Mirror]


def find_write_error() -> str:
    """Return why real clients cannot run here, or nothing."""
    if os.geteuid() != 0:
        return "the real clients need root"
    missing = [program for program in PROGRAMS if not shutil.which(program, path=SBIN)]
    return f"not installed: {', '.join(missing)} (see scripts/install-real-parts)" if missing else ""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark every test in this directory."""
    item.add_marker("e2e")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Leave the suite out where it cannot run, but never silently in CI."""
    if obstacle := find_write_error():
        if os.environ.get("CI"):
            pytest.fail(f"CI runs the end-to-end tests, but {obstacle}", pytrace=False)
        pytest.skip(obstacle)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """The sample images by name."""
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def hub_registry(tmp_path_factory: pytest.TempPathFactory, images: Images) -> Iterator[Registry]:
    """A Docker Hub: every sample image as `library/NAME:latest`, one also under `private/`."""
    registry = Registry(tmp_path_factory.mktemp("hub"))
    try:
        registry.wait_ready()
        for name, layout in images.items():
            registry.push(layout, f"library/{name}", "latest")
        registry.push(images["app"], "private/app", "latest")
        yield registry
    finally:
        registry.stop()


@pytest.fixture(scope="session")
def ghcr_registry(tmp_path_factory: pytest.TempPathFactory, images: Images) -> Iterator[Registry]:
    """Another registry of the world, with one image."""
    registry = Registry(tmp_path_factory.mktemp("ghcr"))
    try:
        registry.wait_ready()
        registry.push(images["app"], "org/app", "1")
        yield registry
    finally:
        registry.stop()


@pytest.fixture
def resources() -> Iterator[ExitStack]:
    """The processes that the test has started; they stop in reverse order."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def hub(hub_registry: Registry, resources: ExitStack) -> Upstream:
    """Docker Hub as regmirror sees it, with a record of its requests."""
    upstream = Upstream(hub_registry)
    resources.callback(upstream.stop)
    return upstream


@pytest.fixture
def ghcr(ghcr_registry: Registry, resources: ExitStack) -> Upstream:
    """ghcr.io as regmirror sees it, with a record of its requests."""
    upstream = Upstream(ghcr_registry)
    resources.callback(upstream.stop)
    return upstream


@pytest.fixture
def origin(hub_registry: Registry, tmp_path: Path, resources: ExitStack) -> Origin:
    """Docker Hub as the clients see it when they go around the mirror."""
    origin = Origin(hub_registry.url, tmp_path)
    resources.callback(origin.stop)
    return origin


@pytest.fixture
def make_mirror(tmp_path: Path, resources: ExitStack) -> MakeMirror:
    """Start a regmirror with these upstream tables."""

    def make(upstreams: Tables, *, workers: int = 1) -> Mirror:
        directory = tmp_path / "mirror"
        directory.mkdir()
        mirror = Mirror(directory, upstreams, workers=workers)
        resources.callback(mirror.stop)
        mirror.start()
        return mirror

    return make


@pytest.fixture
def mirror(make_mirror: MakeMirror, hub: Upstream, ghcr: Upstream) -> Mirror:
    """A regmirror with both upstreams and an empty store."""
    return make_mirror({"docker.io": {"url": hub.url}, "ghcr.io": {"url": ghcr.url}})


@pytest.fixture
def make_dockerd(
    tmp_path_factory: pytest.TempPathFactory, origin: Origin, resources: ExitStack
) -> Callable[[str], Dockerd]:
    """Start a Docker daemon that uses the mirror at this URL."""

    def make(mirror_url: str) -> Dockerd:
        # Short: paths of sockets end at 108 bytes.
        daemon = Dockerd(tmp_path_factory.mktemp("d"), origin, mirror_url)
        resources.callback(daemon.stop)
        daemon.wait_ready()
        return daemon

    return make


@pytest.fixture
def make_containerd(
    tmp_path_factory: pytest.TempPathFactory, origin: Origin, resources: ExitStack
) -> Callable[[], Containerd]:
    """Start a containerd with an empty store."""

    def make() -> Containerd:
        daemon = Containerd(tmp_path_factory.mktemp("c"), origin)
        resources.callback(daemon.stop)
        daemon.wait_ready()
        return daemon

    return make


@pytest.fixture
def make_containers_image(
    tmp_path_factory: pytest.TempPathFactory, origin: Origin
) -> Callable[[], ContainersImage]:
    """Set up podman and skopeo with an empty store."""
    return lambda: ContainersImage(tmp_path_factory.mktemp("p"), origin)
