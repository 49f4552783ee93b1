"""Experiments: one class for each kind of measurement.

An experiment starts its own servers and fills their stores once; then ``measure`` is called for each
server in each round and returns figures by name. ``goals`` defines the goals of the figures.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from benchmarks.clients import run_wrk
from benchmarks.content import Image
from benchmarks.fleet import Bench, Fleet, open_fleet
from benchmarks.processes import provide_memory
from benchmarks.rows import add_warm_blobs, digest_of, fill
from benchmarks.servers import DIRECT, DOCKER_REGISTRY, DRAYAGE, NGINX, NGINX_CACHE, Server, regmirror

Figures = dict[str, float]

SMALL_BLOB = 70 * 1024
MANIFEST_CONNECTIONS = 32
BUSY_CLIENTS = 8
SLOW_READERS, SLOW_RATE = 100, 1_000_000  # bytes a second each
IMAGE_CLIENTS, IMAGE_CONNECTIONS = 16, 3  # clients, and connections of each: docker and containerd use 3
LAYERS = (0.4, 0.25, 0.15, 0.1, 0.05, 0.03, 0.015, 0.005)  # shares of the whole image


class Experiment(ABC):
    """One kind of measurement."""

    name: str
    #: Servers that the programs under test are compared with.
    peers: Sequence[str] = (DOCKER_REGISTRY, DRAYAGE, NGINX)
    secure_upstream = False
    secure = False
    #: Multiplies the number of rounds: short measurements need more.
    rounds_factor = 1
    is_for_quick = True

    @contextmanager
    def open(self, bench: Bench) -> Iterator[Fleet]:
        """Start the servers and prepare them; stop them at the end."""
        with open_fleet(bench, self.peers, secure_upstream=self.secure_upstream, secure=self.secure) as fleet:
            self.prepare(fleet)
            yield fleet

    def prepare(self, fleet: Fleet) -> None:  # noqa: B027  # most experiments need no preparation
        """Called once, before the first round."""

    def begin_round(self, fleet: Fleet) -> None:  # noqa: B027
        """Called before each round and before each repetition of a round."""

    @abstractmethod
    def measure(self, fleet: Fleet, server: Server) -> Figures:
        """Measure one server once; return figures by name."""


class Warm(Experiment):
    """Experiments with one image that every server has cached."""

    image: Image

    def prepare(self, fleet: Fleet) -> None:
        self.image = fleet.content.make_image([fleet.bench.scale.size, SMALL_BLOB])
        for server in fleet.servers.values():
            pull(server, self.image)
        for server in fleet.servers.values():
            server.wait_until_quiet()

    @property
    def large(self) -> str:
        return self.image.blob_paths()[1]

    @property
    def small(self) -> str:
        return self.image.blob_paths()[2]


class WarmBlob(Warm):
    name = "warm-blob"
    numbers: Sequence[int] = (1, 8, 64)  # of clients

    def measure(self, fleet: Fleet, server: Server) -> Figures:
        figures: Figures = {}
        for clients in self.numbers:
            before = server.cpu()
            read = fleet.bench.reader.read(
                server.address(), [self.large], connections=clients, seconds=fleet.bench.scale.seconds
            )
            figures[f"warm-blob-{clients}"] = read.rate
            figures[f"warm-blob-{clients}-cpu"] = (server.cpu() - before) / read.gibibytes
        return figures


class Curve(WarmBlob):
    """Further numbers of clients, for the plot."""

    name = "curve"
    numbers = (2, 4, 16, 32)
    is_for_quick = False


class WarmManifest(Warm):
    name = "warm-manifest"

    def measure(self, fleet: Fleet, server: Server) -> Figures:
        figures: Figures = {}
        for how in ("digest", "tag"):
            path = self.image.manifest_path(by_digest=how == "digest")
            load = run_wrk(
                server.address(), path, connections=MANIFEST_CONNECTIONS, seconds=fleet.bench.scale.seconds
            )
            figures |= {f"manifest-{how}": load.rate, f"manifest-{how}-p99": load.p99 * 1000}
        return figures


class SmallBlob(Warm):
    name = "small-blob"

    def measure(self, fleet: Fleet, server: Server) -> Figures:
        read = fleet.bench.reader.read(
            server.address(), [self.small], connections=32, seconds=fleet.bench.scale.seconds
        )
        return {"small-blob": read.responses / read.seconds}


class TlsBlob(Warm):
    name = "tls-blob"
    peers = (DOCKER_REGISTRY, NGINX)
    secure = True

    def measure(self, fleet: Fleet, server: Server) -> Figures:
        figures: Figures = {}
        is_quick = fleet.bench.scale.is_quick
        for version in ("1.2",) if is_quick else ("1.2", "1.3"):
            for clients in (8,) if is_quick else (1, 8):
                read = fleet.bench.reader.read(
                    server.address(version),
                    [self.large],
                    connections=clients,
                    seconds=fleet.bench.scale.seconds,
                )
                figures[f"tls{version}-blob-{clients}"] = read.rate
        return figures


class Isolation(Warm):
    """Manifest requests while other clients stream the large blob."""

    name = "isolation"

    def measure(self, fleet: Fleet, server: Server) -> Figures:
        seconds, reader = fleet.bench.scale.seconds, fleet.bench.reader
        streaming = reader.start(
            server.address(), [self.large], connections=BUSY_CLIENTS, seconds=max(1, round(seconds)) + 0.4
        )
        time.sleep(0.2)
        load = run_wrk(server.address(), self.image.manifest_path(), connections=8, seconds=seconds)
        read = reader.finish(streaming)
        return {
            "isolation-p99": load.p99 * 1000,
            "isolation-p50": load.p50 * 1000,
            "isolation-manifests": load.rate,
            "isolation-blobs": read.rate,
        }


class Start(Warm):
    """Restart with a filled store; memory of a worker when idle and with slow readers."""

    name = "start"
    peers = (DOCKER_REGISTRY, DRAYAGE)

    def measure(self, fleet: Fleet, server: Server) -> Figures:
        server.stop()
        figures = {"start": server.start()}
        time.sleep(1)
        server.wait_until_quiet()
        figures["memory-idle"] = server.resident_worker() / 1e6
        pull_manifests(server, self.image)
        reading = fleet.bench.reader.start(
            server.address(), [self.large], connections=SLOW_READERS, seconds=3, rate=SLOW_RATE
        )
        time.sleep(2)
        figures["memory-slow"] = server.resident_worker() / 1e6
        fleet.bench.reader.finish(reading)
        return figures


class Cold(Experiment):
    """Experiments with a new image in each round, which no server has cached."""

    image: Image | None = None
    layers: Sequence[float] = (1.0,)
    peers: Sequence[str] = (DOCKER_REGISTRY, DRAYAGE, NGINX_CACHE, DIRECT)

    def begin_round(self, fleet: Fleet) -> None:
        if self.image is not None:
            fleet.content.remove(self.image)
        size = fleet.bench.scale.size
        self.image = fleet.content.make_image([int(share * size) for share in self.layers])

    def make_ready(self, fleet: Fleet, server: Server) -> None:
        """Wait until the server and the disk are idle, and provide memory for the files it will write."""
        server.wait_until_quiet()
        provide_memory(fleet.directory, 2 * fleet.bench.scale.size)


class ColdBlob(Cold):
    name = "cold-blob"
    clients = 1
    rounds_factor = 2

    def measure(self, fleet: Fleet, server: Server) -> Figures:
        assert self.image is not None
        pull_manifests(server, self.image)
        self.make_ready(fleet, server)
        cpu, traffic = server.cpu(), fleet.upstream.traffic()
        path = self.image.blob_paths()[1]
        read = fleet.bench.reader.read(server.address(), [path], connections=self.clients)
        server.wait_until_quiet()
        fetched = fleet.upstream.traffic() - traffic
        return {
            self.name: read.rate,
            f"{self.name}-cpu": (server.cpu() - cpu) / read.gibibytes,
            f"{self.name}-bytes": fetched.bytes / self.image.blobs[1].size,
            f"{self.name}-requests": fetched.requests,
            f"{self.name}-first-byte": read.first_byte["p99"] * 1000,
        }


class ColdBlobSecureUpstream(ColdBlob):
    """Cold blob over TLS; without drayage, which trusts only public authorities."""

    name = "cold-blob-https"
    peers = (DOCKER_REGISTRY, NGINX_CACHE, DIRECT)
    secure_upstream = True


class ColdBlobMany(ColdBlob):
    name = "cold-blob-32"
    clients = 32
    rounds_factor = 1


class WholeImage(Cold):
    """Several clients pull one image at once, first cold, then warm."""

    name = "image"
    is_for_quick = False
    layers = LAYERS
    peers = (DOCKER_REGISTRY, DRAYAGE, NGINX_CACHE)

    def measure(self, fleet: Fleet, server: Server) -> Figures:
        self.make_ready(fleet, server)
        figures: Figures = {}
        for state in ("cold", "warm"):
            figures[f"image-{state}"] = self._pull(fleet, server)
            server.wait_until_quiet()
        return figures

    def _pull(self, fleet: Fleet, server: Server) -> float:
        """Total GB/s: each client reads the manifest, then the layers on a few connections."""
        assert self.image is not None
        reader, image = fleet.bench.reader, self.image
        manifest = reader.read(server.address(), [image.manifest_path()], connections=IMAGE_CLIENTS)
        connections = IMAGE_CLIENTS * IMAGE_CONNECTIONS
        blobs = reader.read(
            server.address(), image.blob_paths(), connections=connections, stride=IMAGE_CONNECTIONS
        )
        assert blobs.bytes == IMAGE_CLIENTS * image.size, (
            f"{server.name} sent {blobs.bytes} bytes, not {IMAGE_CLIENTS * image.size}"
        )
        return blobs.bytes / (manifest.seconds + blobs.seconds) / 1e9


class Growth(Experiment):
    """Warm latency by the number of rows in the database: one server for each size of store."""

    name = "growth"
    stores = (1, 1_000, 30_000, 1_000_000)  # blobs, in addition to those that are pulled
    is_for_quick = False

    @staticmethod
    def server_name(blobs: int) -> str:
        return f"{blobs:,} stored".replace(",", "\N{NO-BREAK SPACE}")

    @contextmanager
    def open(self, bench: Bench) -> Iterator[Fleet]:
        """Start one server per store. This checkout fills the stores, so only its program can serve them."""
        program = list(bench.subjects.values())[-1]
        with open_fleet(replace(bench, subjects={}), ()) as fleet, ExitStack() as cleaning:
            for number, blobs in enumerate(self.stores, start=1):
                place = fleet.place(number)
                root = place.directory / "data"
                fill(root, blobs, max(1, blobs // 10), with_files=False)
                self.blobs = add_warm_blobs(root)
                more = ["[freshness]", "offline = true", 'incomplete = "serve"', "[gc]", 'interval = "0"']
                server = regmirror(self.server_name(blobs), program, place, more=more)
                cleaning.callback(server.stop)
                server.start()
                fleet.servers[server.name] = server
            yield fleet

    def measure(self, fleet: Fleet, server: Server) -> Figures:
        figures: Figures = {}
        paths = {
            # By digest: the tags are past their max age, and a stale response takes another path.
            "manifest": [f"/v2/team/app0/manifests/{digest_of('manifest', 0)}"],
            "blob": [f"/v2/team/app0/blobs/{digest}" for digest in self.blobs],
        }
        for kind, requested in paths.items():
            server.get(requested[0])
            read = fleet.bench.reader.read(server.address(), requested, seconds=fleet.bench.scale.seconds)
            figures[f"growth-{kind}"] = read.last_byte["p50"] * 1e6
            figures[f"growth-{kind}-p99"] = read.last_byte["p99"] * 1e6
        return figures


def pull_manifests(server: Server, image: Image) -> None:
    """Pull by tag and by digest, as clients do before they request blobs."""
    server.get(image.manifest_path())
    server.get(image.manifest_path(by_digest=True))


def pull(server: Server, image: Image) -> None:
    pull_manifests(server, image)
    for path in image.blob_paths():
        server.get(path)


EXPERIMENTS: Sequence[type[Experiment]] = (
    WarmBlob,
    Curve,
    WarmManifest,
    SmallBlob,
    ColdBlob,
    ColdBlobSecureUpstream,
    ColdBlobMany,
    WholeImage,
    TlsBlob,
    Isolation,
    Start,
    Growth,
)
