"""Cost of a store with a million blob rows: start, memory, metrics, collection, and pulls during it.

    python benchmarks/rows.py [--blobs 1000000] [--manifests 100000] [--directory DIR] [--files]

The rows are generated and have no files, unless ``--files`` creates an empty file for each: only then
reconciliation is measured, because it deletes rows without files. The server is a process of its own;
this process pulls and reads ``/proc``. Prints a table; its latencies are comparable with each other only.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import aiohttp

ROOT = Path(__file__).parents[1]
UPSTREAM = "registry.test"
BATCH = 20_000
REPOSITORIES = 1_000
LAYERS = 9  # in each manifest, and one config
MANIFEST_SIZE = 1_000  # bytes
WARM_BLOBS = 50
PULL_SECONDS = 5.0
REMOVED = (
    4  # one of so many tags is deleted before the last collection, with the content that only it references
)
AGE = 40 * 86_400.0  # seconds since all content was stored

#: Like `regmirror gc`; prints seconds, seconds of reconciliation, peak bytes, checked and removed entries.
COLLECT = """
import asyncio, json, resource, sys, time
from pathlib import Path
from regmirror.config.schema import Config
from regmirror.metadata.store import MetadataStore
from regmirror.metadata.upgrade import database_path
from regmirror.maintenance.toolkit import open_toolkit

async def main(root, with_reconcile):
    metadata = MetadataStore(database_path(root))
    toolkit, began = open_toolkit(root, metadata, lambda event: None), time.monotonic()
    if with_reconcile:
        await toolkit.reconcile()
    reconciling = time.monotonic() - began
    summary = await toolkit.collector(Config()).collect(lambda removal: None)
    seconds = time.monotonic() - began
    await metadata.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps([seconds, reconciling, peak, summary.checked, summary.removed]))

asyncio.run(main(Path(sys.argv[1]), sys.argv[2] == "reconcile"))
"""


def digest_of(kind: str, number: int) -> str:
    return f"sha256:{hashlib.sha256(_content(kind, number)).hexdigest()}"


def _content(kind: str, number: int) -> bytes:
    """Bytes that match ``digest_of``; a manifest has a usual size, because its bytes are in the database."""
    return f"{kind} {number}".encode().ljust(MANIFEST_SIZE if kind == "manifest" else 0)


def fill(root: Path, blobs: int, manifests: int, *, with_files: bool) -> None:
    """Create a store in which a manifest references every blob, and every entry of the GC queue is due."""
    from regmirror.metadata.upgrade import database_path, upgrade

    for name in ("blobs/sha256", "blobs/sha512", "staging", "quarantine"):
        (root / name).mkdir(parents=True)
    upgrade(database_path(root))
    then = time.time() - AGE
    with closing(sqlite3.connect(database_path(root))) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        connection.executemany(
            "INSERT INTO repositories (id, upstream, name) VALUES (?, ?, ?)",
            [(number + 1, UPSTREAM, f"team/app{number}") for number in range(REPOSITORIES)],
        )
        for start in range(0, blobs, BATCH):
            rows = [(digest_of("blob", n), 0, then, then) for n in range(start, min(start + BATCH, blobs))]
            connection.executemany("INSERT INTO blobs VALUES (?, ?, ?, ?)", rows)
        for start in range(0, manifests, BATCH):
            numbers = range(start, min(start + BATCH, manifests))
            _insert_manifests(connection, numbers, blobs, then)
        connection.execute("INSERT INTO reviews SELECT 'blob', 0, digest, stored_at, stored_at FROM blobs")
        connection.execute(
            "INSERT INTO reviews SELECT 'manifest', repository_id, digest, stored_at, stored_at "
            "FROM repository_manifests"
        )
        connection.commit()
    if with_files:
        for number in range(blobs):
            _touch(root, digest_of("blob", number), b"")


def delete_tags(root: Path, kept: int) -> None:
    """Delete the tags from number ``kept`` on, as if their upstream had deleted them long ago."""
    from regmirror.metadata.upgrade import database_path

    then = time.time() - AGE
    with closing(sqlite3.connect(database_path(root), timeout=10)) as connection:
        gone = f"FROM tags WHERE CAST(substr(name, 2) AS INTEGER) >= {kept}"
        connection.execute(
            f"INSERT OR REPLACE INTO reviews SELECT 'manifest', repository_id, digest, {then}, {then} {gone}"
        )
        connection.execute(f"DELETE {gone}")
        connection.commit()


def _insert_manifests(connection: sqlite3.Connection, numbers: range, blobs: int, then: float) -> None:
    media_type = "application/vnd.oci.image.manifest.v1+json"
    manifests, links, tags, references = [], [], [], []
    for number in numbers:
        repository, digest = number % REPOSITORIES + 1, digest_of("manifest", number)
        manifests.append((digest, media_type, _content("manifest", number), then))
        links.append((repository, digest, then, then, True))
        tags.append((repository, f"v{number}", digest, media_type, MANIFEST_SIZE, then, then, then))
        for place in range(LAYERS + 1):
            named = digest_of("blob", (number * (LAYERS + 1) + place) % blobs)
            references.append((digest, place, named, "layer" if place else "config", 0, True))
    for statement, rows in (
        ("manifests (digest, media_type, payload, stored_at) VALUES (?, ?, ?, ?)", manifests),
        (
            (
                "repository_manifests (repository_id, digest, stored_at, pulled_at, is_verified) "
                "VALUES (?, ?, ?, ?, ?)"
            ),
            links,
        ),
        (
            (
                "tags (repository_id, name, digest, media_type, size, checked_at, changed_at, pulled_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
            ),
            tags,
        ),
        (
            (
                "manifest_references (manifest, position, digest, role, size, fetchable) "
                "VALUES (?, ?, ?, ?, ?, ?)"
            ),
            references,
        ),
    ):
        connection.executemany(f"INSERT INTO {statement}", rows)


def _touch(root: Path, digest: str, data: bytes) -> None:
    descriptor = os.open(root / "blobs" / "sha256" / digest[7:], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(descriptor, data)
    os.close(descriptor)


def add_warm_blobs(root: Path) -> list[str]:
    """Add blobs of 1 KB with files, referenced by the first manifest; return their digests."""
    from regmirror.metadata.upgrade import database_path

    found, now = [], time.time()
    with closing(sqlite3.connect(database_path(root))) as connection:
        for number in range(WARM_BLOBS):
            data = (b"%6d" % number) * 171
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            _touch(root, digest, data)
            connection.execute("INSERT INTO blobs VALUES (?, ?, ?, ?)", (digest, len(data), now, now))
            row = (digest_of("manifest", 0), 100 + number, digest, "layer", len(data), True)
            connection.execute("INSERT INTO manifest_references VALUES (?, ?, ?, ?, ?, ?)", row)
            # Without a link to team/app0 the mirror would request a proof of possession, and it is offline.
            connection.execute("INSERT INTO repository_blobs VALUES (?, ?, ?)", (1, digest, now))
            found.append(digest)
        connection.commit()
    return found


# --- the program ---


class Program:
    """`regmirror serve` on the store, offline: no upstream request is made."""

    def __init__(self, root: Path) -> None:
        config = root.parent / "mirror.toml"
        tables: dict[str, dict[str, object]] = {
            "docker.io": {"enabled": False},
            UPSTREAM: {"url": "http://127.0.0.1:1"},
        }
        lines = [f'default_upstream = "{UPSTREAM}"', "[server]", 'listen = "127.0.0.1:0"']
        lines += ["[freshness]", "offline = true", "[gc]", 'interval = "0"']
        lines += ["[storage]", f"path = {json.dumps(str(root))}", 'max_size = "1TB"', 'min_free = "0"']
        for name, table in tables.items():
            lines += [
                f'[upstreams."{name}"]',
                *(f"{key} = {json.dumps(value)}" for key, value in table.items()),
            ]
        config.write_text("\n".join(lines), encoding="utf-8")
        began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "regmirror", "--config", str(config), "serve"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        self.started_in = time.monotonic() - began
        self.url = next(word for word in line.split() if word.startswith("http"))

    def memory(self) -> int:
        """Resident bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) * 1024

    def stop(self) -> None:
        self.process.terminate()
        self.process.communicate()


class Pulls:
    """Sequential pulls of four kinds; records the seconds of each by kind."""

    def __init__(self, http: aiohttp.ClientSession, warm: list[str], manifests: int) -> None:
        self._http = http
        self._paths = {
            "manifest": itertools.repeat("/v2/team/app0/manifests/v0"),
            # Each tag once, so that the database is read.
            "manifest, database": (
                f"/v2/team/app{number % REPOSITORIES}/manifests/v{number}" for number in range(1, manifests)
            ),
            "blob of 1 KB": itertools.cycle(f"/v2/team/app0/blobs/{digest}" for digest in warm),
            "/metrics": itertools.repeat("/metrics"),
        }
        self.taken: dict[str, list[float]] = {kind: [] for kind in self._paths}

    def take(self) -> dict[str, list[float]]:
        """Return and reset the recorded seconds."""
        taken, self.taken = self.taken, {kind: [] for kind in self._paths}
        return taken

    async def pull_for(self, seconds: float, is_over: Callable[[], bool] = lambda: False) -> None:
        """Pull each kind for ``seconds``, or until ``is_over`` returns true."""
        for kind, paths in self._paths.items():
            began = time.monotonic()
            while time.monotonic() - began < seconds and not is_over() and (path := next(paths, None)):
                self.taken[kind].append(await self.pull(path))

    async def pull(self, path: str) -> float:
        at = time.perf_counter()
        async with self._http.get(path) as response:
            await response.read()
            assert response.status == 200, (path, response.status)
        return time.perf_counter() - at


async def collect(root: Path, how: str) -> list[float]:
    words = [sys.executable, "-c", COLLECT, str(root), how]
    process = await asyncio.create_subprocess_exec(*words, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0, "the collection failed"
    return list(json.loads(output))


async def measure(root: Path, warm: list[str], manifests: int, *, with_files: bool) -> None:
    """Start, pull, and collect: with all entries due, with none, and with a quarter of the tags deleted."""
    program = Program(root)
    try:
        print_row("start", f"{program.started_in:.2f} s")
        print_row("resident after start", f"{program.memory() / 1e6:.0f} MB")
        async with aiohttp.ClientSession(program.url) as http:
            pulls = Pulls(http, warm, manifests)
            print_row("/metrics, first", f"{await pulls.pull('/metrics') * 1000:.1f} ms")
            for digest in warm:  # the first read of each verifies its bytes
                await pulls.pull(f"/v2/team/app0/blobs/{digest}")
            await pulls.pull_for(PULL_SECONDS)
            before = pulls.take()
            print_row("/metrics, later", f"p50 {quantile(before['/metrics'], 0.5) * 1000:.1f} ms")
            for run in ["first", "second", *(["reconcile"] if with_files else []), "removing"]:
                if run == "removing":
                    delete_tags(root, manifests - manifests // REMOVED)
                await collect_and_pull(root, run, pulls, before)
        print_row("resident at the end", f"{program.memory() / 1e6:.0f} MB")
    finally:
        program.stop()


async def collect_and_pull(root: Path, run: str, pulls: Pulls, before: dict[str, list[float]]) -> None:
    collecting = asyncio.create_task(collect(root, run))
    while not collecting.done():
        await pulls.pull_for(0.25, collecting.done)
    seconds, reconciling, peak, checked, removed = await collecting
    text = f"{seconds:.1f} s, peak {peak / 1e6:.0f} MB, {checked:.0f} checked, {removed:.0f} removed"
    if run == "reconcile":
        text += f", reconcile {reconciling:.1f} s"
    print_row(f"collection, {run}", text)
    for kind, during in pulls.take().items():
        if len(during) > 20:
            print_row(f"  {kind}", _compare(before[kind], during))


def _compare(before: list[float], during: list[float]) -> str:
    parts = []
    for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
        one, other = quantile(before, share), quantile(during, share)
        parts.append(f"{name} {one * 1000:.2f} -> {other * 1000:.2f} ms (x{other / one:.2f})")
    return "  ".join(parts)


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def print_row(name: str, value: str) -> None:
    print(f"{name:24} {value}", flush=True)  # noqa: T201  # the table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--blobs", type=int, default=1_000_000)
    parser.add_argument("--manifests", type=int, default=100_000)
    parser.add_argument(
        "--directory", help="directory of the store, kept afterwards; default: a temporary one"
    )
    parser.add_argument(
        "--files", action="store_true", help="create an empty file for each row, and measure reconciliation"
    )
    given = parser.parse_args()
    parent = Path(given.directory or tempfile.mkdtemp(prefix="regmirror-rows-"))
    root = parent / "data"

    try:
        began = time.monotonic()
        fill(root, given.blobs, given.manifests, with_files=given.files)
        warm = add_warm_blobs(root)
        size = (root / "regmirror.db").stat().st_size
        print_row("store", f"{given.blobs} blobs, {given.manifests} manifests, database {size / 1e6:.0f} MB")
        print_row("created in", f"{time.monotonic() - began:.0f} s")
        asyncio.run(measure(root, warm, given.manifests, with_files=given.files))
    finally:
        if not given.directory:
            shutil.rmtree(parent)


if __name__ == "__main__":
    main()
