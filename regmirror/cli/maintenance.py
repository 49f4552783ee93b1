"""``gc``, ``evict``, ``purge``, ``pin``, ``unpin``, ``pins``: upkeep by hand.

They work on the store itself, beside a server or without one. A dry run is the real run upon a
copy of the database, with files that stay.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from regmirror.cli.context import Context
from regmirror.cli.naming import Naming
from regmirror.cli.output import (
    Table,
    bytes_text,
    print_json,
    print_parts,
    short_digest,
    time_json,
    time_text,
)
from regmirror.config.schema import Config
from regmirror.errors import RegmirrorError
from regmirror.maintenance.eviction import Deficit
from regmirror.maintenance.news import InvalidationMarker
from regmirror.maintenance.toolkit import Toolkit, dry_run_toolkit, open_toolkit
from regmirror.maintenance.turns import try_turn
from regmirror.metadata.database import DatabaseFailed
from regmirror.metadata.gc import Removal
from regmirror.metadata.reports import open_reports
from regmirror.metadata.store import MetadataStore
from regmirror.metadata.upgrade import database_path
from regmirror.metadata.vacuum import give_back
from regmirror.oci.names import Digest

LOCK_TIMEOUT: Final = 60.0  # seconds to wait for another process that collects
NOTICE_TIME: Final = 0.25  # seconds in which every server has noticed
Work = Callable[[Toolkit], Awaitable[None]]


@dataclass
class Journal:
    """What has gone, or would go, in the order in which it went."""

    removals: list[Removal] = field(default_factory=list)

    def __call__(self, removal: Removal) -> None:
        self.removals.append(removal)


def collect(context: Context, *, is_dry: bool) -> None:
    """Compare files and rows, and collect what nothing references."""
    config, journal = context.load(), Journal()

    async def work(toolkit: Toolkit) -> None:
        await toolkit.reconcile()
        await toolkit.collector(config).collect(journal)

    _run(config, work, is_dry=is_dry)
    _print(context, journal, is_dry=is_dry)


def evict(context: Context, to: int | None, *, is_dry: bool) -> None:
    """Evict the least recently pulled blobs until the store has ``to`` bytes, or keeps its limits."""
    config, journal = context.load(), Journal()
    if to is None and not config.storage.max_size and not config.storage.min_free:
        raise RegmirrorError("the store has no limits: say how much may stay with --to")

    async def work(toolkit: Toolkit) -> None:
        capacity = toolkit.capacity(config, _flush_nothing)
        need = await capacity.find_excess() if to is None else Deficit(0, max(0, await capacity.used() - to))
        await capacity.evict(need, journal)

    _run(config, work, is_dry=is_dry)
    _print(context, journal, is_dry=is_dry)


def purge(context: Context, what: str) -> None:
    """Forget an image, repositories or a digest now."""
    config, journal = context.load(), Journal()
    naming = Naming(config)
    found, is_free = False, True

    async def work(toolkit: Toolkit) -> None:
        nonlocal found, is_free
        purger = toolkit.purger(config)
        if what.startswith(("sha256:", "sha512:")):
            is_free = await purger.purge_digest(Digest(what), journal)
        elif set(what) & set("*?["):
            for repository in await toolkit.metadata.list_repositories():
                if naming.is_match_of(what, repository):
                    found = True
                    await purger.purge_repository(repository, journal)
        else:
            repository, reference = naming.parse(what)
            if not isinstance(reference, Digest):
                found = await toolkit.metadata.find_tag(repository, reference) is not None
            await purger.purge_image(repository, reference, journal)

    _run(config, work, is_dry=False)
    if not is_free:
        raise RegmirrorError(f"{what} is being read at this moment, and stays; try again later")
    if not found and not journal.removals:
        raise RegmirrorError(f"nothing stored matches {what}; see regmirror ls")
    _print(context, journal, is_dry=False)


def pin(context: Context, pattern: str) -> None:
    """Protect what matches from eviction."""
    config = context.load()
    canonical = Naming(config).canonical(pattern)

    async def work(toolkit: Toolkit) -> None:
        await toolkit.pins.add(canonical)

    _run(config, work, is_dry=False, is_alone=False)
    if context.json:
        print_json({"pattern": canonical})
    else:
        print_parts(f"Pinned {canonical}.")


def unpin(context: Context, pattern: str) -> None:
    """Protect no longer; fails if there was no such pin."""
    config = context.load()
    canonical = Naming(config).canonical(pattern)
    removed = False

    async def work(toolkit: Toolkit) -> None:
        nonlocal removed
        removed = await toolkit.pins.remove(canonical)

    _run(config, work, is_dry=False, is_alone=False)
    if not removed:
        raise RegmirrorError(f"there is no pin {canonical}; see regmirror pins")
    if context.json:
        print_json({"pattern": canonical})
    else:
        print_parts(f"Unpinned {canonical}.")


def pins(context: Context) -> None:
    """Print what is pinned."""
    config = context.load()
    rows: list[tuple[str, float]] = []

    async def work(toolkit: Toolkit) -> None:
        rows.extend((item.pattern, item.pinned_at) for item in await toolkit.pins.list())

    _run(config, work, is_dry=False, is_alone=False)
    if context.json:
        print_json([{"pattern": pattern, "pinned_at": time_json(at)} for pattern, at in rows])
    elif rows:
        print_parts(Table(("pattern", "pinned"), [(pattern, time_text(at)) for pattern, at in rows]))
    else:
        print_parts("Nothing is pinned.")


async def _flush_nothing() -> None:
    """A command has served no pulls."""


def _run(config: Config, work: Work, *, is_dry: bool, is_alone: bool = True) -> None:
    root = Path(config.storage.path)
    with open_reports(root):  # says what is wrong with the database, if something is
        pass
    try:
        if not is_alone:
            asyncio.run(_work(root, work, is_dry=is_dry))
            return
        with _alone(root):
            asyncio.run(_work(root, work, is_dry=is_dry))
    except DatabaseFailed as error:
        raise RegmirrorError(f"the database cannot be used: {getattr(error, 'orig', error)}") from None
    if not is_dry:
        give_back(database_path(root))
        InvalidationMarker(root).publish()
        time.sleep(NOTICE_TIME)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    until = time.monotonic() + LOCK_TIMEOUT
    while True:
        with try_turn(root) as is_alone:
            if is_alone:
                yield
                return
        if time.monotonic() > until:
            raise RegmirrorError(f"another process collects in {root}; try again later")
        time.sleep(0.2)


async def _work(root: Path, work: Work, *, is_dry: bool) -> None:
    async with _open(root, is_dry=is_dry) as toolkit:
        await work(toolkit)


@asynccontextmanager
async def _open(root: Path, *, is_dry: bool) -> AsyncIterator[Toolkit]:
    with tempfile.TemporaryDirectory(prefix="regmirror-") as directory:
        path = database_path(root)
        if is_dry:
            path = _copy(path, database_path(Path(directory)))
        metadata = MetadataStore(path)
        try:
            toolkit = open_toolkit(root, metadata, lambda event: None)
            yield dry_run_toolkit(toolkit) if is_dry else toolkit
        finally:
            await metadata.close()


def _copy(path: Path, target: Path) -> Path:
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(target)) as copy:
        source.backup(copy)
    return target


# --- output ----------------------------------------------------------------------------------


def _print(context: Context, journal: Journal, *, is_dry: bool) -> None:
    removals = journal.removals
    total = sum(item.size for item in removals)
    if context.json:
        removed = [_as_json(item) for item in removals]
        print_json({"dry_run": is_dry, "removed": removed, "count": len(removals), "bytes": total})
        return
    verb = "would be removed" if is_dry else "removed"
    summary = f"{len(removals)} {verb}, {bytes_text(total)}."
    if not removals:
        print_parts("Nothing to remove.")
        return
    rows = [
        (
            "blob" if item.repository is None else "manifest",
            short_digest(item.digest),
            bytes_text(item.size),
            "-" if item.repository is None else str(item.repository),
            item.why,
        )
        for item in removals
    ]
    print_parts(Table(("kind", "digest", "size", "repository", "why"), rows, right={"size"}), summary)


def _as_json(removal: Removal) -> dict[str, Any]:
    return {
        "kind": "blob" if removal.repository is None else "manifest",
        "digest": str(removal.digest),
        "size": removal.size,
        "repository": None if removal.repository is None else str(removal.repository),
        "reason": removal.why,
    }
