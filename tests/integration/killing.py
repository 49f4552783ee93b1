"""A mirror under load that is killed repeatedly, and the invariants of its store."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from regmirror.blobs.staging import Staging
from regmirror.metadata.upgrade import database_path
from tests.fake_registry import FakeRegistry, random_bytes
from tests.integration.collecting import collect
from tests.mirror_fixture import NAME, Client, run_program, wait_until

REPOSITORIES = ("team/app", "team/web")
TAGS = ("1", "2", "latest")
MAX_SIZE = 2_000_000  # bytes; the content to pull is several times as large
LIMITS: dict[str, Any] = {
    "storage": {"max_size": str(MAX_SIZE), "min_free": "0"},
    "gc": {"interval": "1s", "grace": "1s", "keep_untagged": "1s"},
    "freshness": {"tag_max_age": "200ms"},
}


def stock(upstream: FakeRegistry, dice: random.Random) -> None:
    """Images that share layers, of 10 kB to 400 kB each, and indexes of them, by tags that will move."""
    shared = [random_bytes(dice.choice((10_000, 60_000, 400_000)), seed) for seed in range(40)]
    for repository in REPOSITORIES:
        images = [
            upstream.add_image(
                repository,
                layers=[*dice.sample(shared, 4), random_bytes(30_000, 100 + number)],
                config={"number": number},
            )
            for number in range(10)
        ]
        for number in range(3):
            upstream.add_index(repository, images=images[number : number + 2], annotations={"n": str(number)})
        move_tags(upstream, dice, repository)


def move_tags(upstream: FakeRegistry, dice: random.Random, repository: str) -> None:
    for tag in TAGS:
        upstream.move_tag(repository, tag, dice.choice([*upstream.repository(repository).manifests]))


@dataclass
class Load:
    """Clients that pull all the time; ``program`` is the one of the moment, None while there is none.

    ``faults`` describes wrong responses that ended without an error.
    """

    upstream: FakeRegistry
    dice: random.Random
    program: Client | None = None
    pulled: int = 0
    broken: int = 0
    faults: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def by_clients(self, count: int) -> AsyncIterator[None]:
        clients = [asyncio.create_task(self._pull_for_ever(random.Random(number))) for number in range(count)]
        try:
            yield
        finally:
            for client in clients:
                client.cancel()
            ended = await asyncio.gather(*clients, return_exceptions=True)
        assert all(isinstance(error, asyncio.CancelledError) for error in ended), ended

    async def _pull_for_ever(self, dice: random.Random) -> None:
        while True:
            if self.program is None:
                await asyncio.sleep(0.02)
                continue
            try:
                await self.pull_something(dice)
            # Killed: nothing was promised. aiohttp has a RuntimeError for a connection or a session
            # that closes while a request is being written.
            except (aiohttp.ClientError, TimeoutError, OSError, RuntimeError):
                self.broken += 1
                await asyncio.sleep(0.02)

    async def pull_something(self, dice: random.Random) -> None:
        repository = dice.choice(REPOSITORIES)
        if dice.random() < 0.05:
            move_tags(self.upstream, dice, repository)
        document = await self._pull_manifest(repository, dice.choice(TAGS))
        children = [child["digest"] for child in document.get("manifests", ())]
        if children:
            document = await self._pull_manifest(repository, dice.choice(children))
        for part in (document.get("config"), *document.get("layers", ())):
            if part is not None:
                await self._pull(f"/v2/{repository}/blobs/{part['digest']}", part["digest"])

    async def _pull_manifest(self, repository: str, reference: str) -> dict[str, Any]:
        body = await self._pull(f"/v2/{repository}/manifests/{reference}")
        return json.loads(body) if body else {}

    async def _pull(self, path: str, digest: str = "") -> bytes:
        program = self.program
        if program is None:
            raise ConnectionError("there is no program at the moment")
        async with program.open(path) as response:
            body = await response.read()
            declared = response.headers.get("Docker-Content-Digest", "")
        self.pulled += 1
        if response.status != 200:
            self.faults.append(f"{path}: {response.status} {body[:200]!r}")
            return b""
        found = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if not body or found != declared or (digest and found != digest):
            self.faults.append(f"{path}: {len(body)} bytes are {found}, declared {declared}")
        return body


async def run_and_kill(storage: Path, load: Load, rounds: int) -> None:
    """Start the program on the store, let it work for a moment, kill it; ``rounds`` times."""
    dice = load.dice
    for number in range(rounds):
        collecting = start_collecting(storage, 1.0, 1_000) if storage.exists() else None
        try:
            async with run_program(storage, {NAME: load.upstream}, workers=2, **LIMITS) as program:
                load.program = program
                before = load.pulled
                await wait_until(lambda: load.pulled > before + 5, f"pulls go on in round {number}")  # noqa: B023
                await asyncio.sleep(dice.uniform(0.05, 0.8))
                if dice.random() < 0.4:
                    os.kill(dice.choice(program.workers()), signal.SIGKILL)
                    await asyncio.sleep(dice.uniform(0.05, 0.4))
                    check_integrity(storage)
                load.program = None
                if collecting is not None and dice.random() < 0.7:
                    collecting.kill()
                program.kill()
        finally:
            if collecting is not None:
                collecting.kill()
                collecting.communicate()
        check_integrity(storage)


def start_collecting(
    storage: Path, grace: float, repeat: int, die_before: int = 0
) -> subprocess.Popen[bytes]:
    """Run ``collecting.py`` beside the other users of the store."""
    words = [str(storage), str(grace), str(repeat), str(die_before)]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.integration.collecting", *words],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )


def check_integrity(storage: Path) -> None:
    assert ask(storage, "PRAGMA integrity_check") == [("ok",)]


def ask(storage: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(database_path(storage), timeout=10)) as connection:
        return connection.execute(query).fetchall()


async def check_after_collection(storage: Path) -> None:
    """After reconciliation and collection, files, rows and reachable content are equal (B42)."""
    await collect(storage, 0.0, ahead=10)
    check_integrity(storage)
    files = {f"sha256:{path.name}": path for path in (storage / "blobs" / "sha256").iterdir()}
    for digest, path in files.items():
        assert f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" == digest
    assert files.keys() == {row[0] for row in ask(storage, "SELECT digest FROM blobs")}
    held = _reachable(storage)
    assert held == {*ask(storage, "SELECT repository_id, digest FROM repository_manifests")}
    manifests = {row[0] for row in ask(storage, "SELECT digest FROM manifests")}
    assert manifests == {digest for _, digest in held}
    named = {row[0] for row in ask(storage, "SELECT digest FROM manifest_references WHERE role != 'subject'")}
    assert files.keys() <= named
    assert ask(storage, "SELECT * FROM removals") == []
    totals = dict(ask(storage, "SELECT what, count || ' ' || bytes FROM totals"))
    assert totals == {
        "blobs": f"{len(files)} {sum(path.stat().st_size for path in files.values())}",
        "manifests": ask(
            storage, "SELECT count(*) || ' ' || coalesce(sum(length(payload)), 0) FROM manifests"
        )[0][0],
        "references": ask(storage, "SELECT count(*) || ' 0' FROM manifest_references")[0][0],
    }
    assert list((storage / "quarantine").iterdir()) == []
    Staging(storage / "staging").sweep(float("inf"))
    assert list((storage / "staging").iterdir()) == []


def _reachable(storage: Path) -> set[tuple[int, str]]:
    """The manifests that are reachable from tags, by repository."""
    held = {*ask(storage, "SELECT repository_id, digest FROM repository_manifests")}
    tagged = "SELECT repository_id, digest FROM tags UNION SELECT repository_id, previous FROM tags"
    found = {*ask(storage, tagged)} & held
    children = ask(storage, "SELECT manifest, digest FROM manifest_references WHERE role = 'manifest'")
    for repository, digest in [*found]:
        found |= {(repository, child) for parent, child in children if parent == digest}
    return found & held
