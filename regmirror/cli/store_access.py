"""Access to the store for commands that change it, beside a running server or without one."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Final

from regmirror.config.schema import Config
from regmirror.errors import RegmirrorError
from regmirror.maintenance.news import InvalidationMarker
from regmirror.maintenance.toolkit import Toolkit, dry_run_toolkit, open_toolkit
from regmirror.maintenance.turns import COLLECTION, try_turn
from regmirror.metadata.database import DatabaseFailed
from regmirror.metadata.reports import open_reports
from regmirror.metadata.sqlite import reclaim_space
from regmirror.metadata.store import MetadataStore
from regmirror.metadata.upgrade import database_path

LOCK_TIMEOUT: Final = 60.0  # seconds to wait for the maintenance of another process
INVALIDATION_TIME: Final = 0.25  # seconds within which every server drops its in-memory caches
Work = Callable[[Toolkit], Awaitable[None]]


def change_store(
    config: Config, work: Work, *, tasks: Sequence[str] = (COLLECTION,), is_dry: bool = False
) -> None:
    """Run ``work`` on the store and tell running servers to drop their in-memory caches.

    The work starts when no other process does one of ``tasks``. A dry run works on a copy of the
    database and leaves the files alone. Raises RegmirrorError if there is no store, if its
    database cannot be used, or if the wait takes more than ``LOCK_TIMEOUT``.
    """
    root = Path(config.storage.path)
    check_database(root)
    try:
        with ExitStack() as turns:
            for task in tasks:
                turns.enter_context(_wait_for_turn(root, task))
            asyncio.run(_run(root, work, is_dry=is_dry))
    except DatabaseFailed as error:
        raise RegmirrorError(f"the database cannot be used: {getattr(error, 'orig', error)}") from None
    if not is_dry:
        reclaim_space(database_path(root))
        InvalidationMarker(root).publish()
        time.sleep(INVALIDATION_TIME)


def check_database(root: Path) -> None:
    """Raise StoreUnreadable, which names the problem and its remedy, if the database is unusable."""
    with open_reports(root):
        pass


@contextmanager
def _wait_for_turn(root: Path, task: str) -> Iterator[None]:
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        with try_turn(root, task) as is_alone:
            if is_alone:
                yield
                return
        if time.monotonic() > deadline:
            raise RegmirrorError(f"another process is doing maintenance in {root}; try again later")
        time.sleep(0.2)


async def _run(root: Path, work: Work, *, is_dry: bool) -> None:
    async with _open_toolkit(root, is_dry=is_dry) as toolkit:
        await work(toolkit)


@asynccontextmanager
async def _open_toolkit(root: Path, *, is_dry: bool) -> AsyncIterator[Toolkit]:
    with tempfile.TemporaryDirectory(prefix="regmirror-") as directory:
        path = database_path(root)
        if is_dry:
            path = _copy_database(path, database_path(Path(directory)))
        metadata = MetadataStore(path)
        try:
            toolkit = open_toolkit(root, metadata, lambda event: None)
            yield dry_run_toolkit(toolkit) if is_dry else toolkit
        finally:
            await metadata.close()


def _copy_database(path: Path, target: Path) -> Path:
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(target)) as copy:
        source.backup(copy)
    return target
