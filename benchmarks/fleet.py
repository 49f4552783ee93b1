"""The servers of one experiment, started and stopped together."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.certificates import Certificates, make_certificates
from benchmarks.clients import Reader
from benchmarks.content import Content
from benchmarks.place import Place
from benchmarks.servers import DIRECT, MAKERS, Server, Upstream, regmirror

FIRST_PORT = 7000  # free, because the benchmarks have their own network namespace


@dataclass(frozen=True)
class Scale:
    """Extent of a run: bytes of the large blob, seconds of a warm measurement, rounds, and the quick mode."""

    size: int
    seconds: float
    rounds: int
    is_quick: bool


@dataclass(frozen=True)
class Bench:
    """Settings and tools that all experiments share."""

    scale: Scale
    directory: Path
    reader: Reader
    certificates: Certificates
    #: The programs under test by name, and the peers to compare with.
    subjects: Mapping[str, Path]
    peers: Sequence[str]


@dataclass
class Fleet:
    """An upstream with its own content, and the servers in front of it."""

    bench: Bench
    directory: Path
    content: Content
    upstream: Upstream
    servers: dict[str, Server] = field(default_factory=dict)

    def place(self, number: int, *, secure: bool = False) -> Place:
        """Create an empty directory and reserve a port for server ``number``."""
        own = self.directory / f"server{number}"
        own.mkdir()
        upstream, certificates = self.upstream.url, self.bench.certificates
        return Place(own, FIRST_PORT + number, upstream, self.content.root, certificates, secure)


@contextmanager
def open_bench(
    scale: Scale, parent: Path | None, subjects: Mapping[str, Path], peers: Sequence[str]
) -> Iterator[Bench]:
    """Create a directory with the client and the certificates; remove it at the end."""
    directory = Path(tempfile.mkdtemp(prefix="regmirror-bench-", dir=parent))
    try:
        yield Bench(scale, directory, Reader(directory), make_certificates(directory), subjects, peers)
    finally:
        shutil.rmtree(directory)


@contextmanager
def open_fleet(
    bench: Bench, peers: Sequence[str], *, secure_upstream: bool = False, secure: bool = False
) -> Iterator[Fleet]:
    """Start every program under test and the selected ``peers``, all with empty stores."""
    directory = Path(tempfile.mkdtemp(dir=bench.directory))
    root = directory / "upstream"
    root.mkdir()
    with ExitStack() as cleaning:
        cleaning.callback(shutil.rmtree, directory)
        content = Content(root / "tree")
        upstream = Upstream(Place(root, FIRST_PORT, "", content.root, bench.certificates, secure_upstream))
        _start(upstream, cleaning)
        fleet = Fleet(bench, directory, content, upstream)
        for number, name in enumerate([*bench.subjects, *(peer for peer in peers if peer in bench.peers)]):
            if name == DIRECT:
                fleet.servers[name] = upstream
                continue
            place = fleet.place(number + 1, secure=secure)
            make = partial(regmirror, name, bench.subjects[name]) if name in bench.subjects else MAKERS[name]
            fleet.servers[name] = make(place)
            _start(fleet.servers[name], cleaning)
        yield fleet


def _start(server: Server, cleaning: ExitStack) -> None:
    cleaning.callback(server.stop)
    server.start()
