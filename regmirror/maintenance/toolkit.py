"""What upkeep is made of, for a server's worker and for the commands alike."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from regmirror.blobs.local import LocalBlobStore
from regmirror.blobs.staging import Staging
from regmirror.config.schema import Config
from regmirror.errors import RegmirrorError
from regmirror.files import create, create_lock
from regmirror.maintenance.capacity import Capacity, Keepers, Limits
from regmirror.maintenance.gc import Collector
from regmirror.maintenance.purge import Purger
from regmirror.maintenance.reconcile import ReconcileSummary, reconcile
from regmirror.maintenance.remover import Removable, Remover
from regmirror.maintenance.scrub import RepairBlob, Scrubber
from regmirror.metadata.gc import GcQueries
from regmirror.metadata.inventory import Inventory
from regmirror.metadata.pins import Pins
from regmirror.metadata.store import MetadataStore
from regmirror.oci.names import Digest
from regmirror.telemetry.events import Emit

Flush = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Toolkit:
    """Everything upkeep works with; ``is_dry`` where it only pretends."""

    root: Path
    metadata: MetadataStore
    store: LocalBlobStore
    staging: Staging
    curation: GcQueries
    inventory: Inventory
    pins: Pins
    remover: Remover
    now: Callable[[], float]
    is_dry: bool = False

    def collector(self, config: Config) -> Collector:
        return Collector(
            self.curation,
            self.pins,
            self.remover,
            grace=config.gc.grace,
            keep_untagged=config.gc.keep_untagged,
            now=self.now,
        )

    def purger(self, config: Config) -> Purger:
        return Purger(self.metadata, self.curation, self.remover, self.collector(config))

    def room(self, config: Config, flush: Flush) -> Capacity:
        notify = InvalidationMarker(self.root).give
        keepers = Keepers(self.metadata, self.curation, self.pins, self.remover, flush, notify)
        return Capacity(self.root, limits_of(config), keepers, is_dry=self.is_dry)

    def scrubber(self, emit: Emit, repair: RepairBlob, rate: float, *, is_noted: bool = True) -> Scrubber:
        """What it drops is forgotten by every worker."""
        return Scrubber(
            self.inventory,
            self.store,
            emit,
            repair,
            rate,
            self.now,
            is_noted=is_noted,
            on_drop=InvalidationMarker(self.root).give,
        )

    async def reconcile(self) -> ReconcileSummary:
        """See ``reconcile.py``. What an earlier removal left is finished first, not stored again."""
        await self.remover.finish_earlier()
        return await reconcile(self.inventory, self.store, None if self.is_dry else self.staging, self.now())


def open_toolkit(
    root: Path, metadata: MetadataStore, emit: Emit, now: Callable[[], float] = time.time
) -> Toolkit:
    """Upkeep of the store below ``root`` with the database of ``metadata``."""
    store, curation = LocalBlobStore(root), GcQueries(metadata.database, now)
    return Toolkit(
        root,
        metadata,
        store,
        Staging(root / "staging"),
        curation,
        Inventory(metadata.database, now),
        Pins(metadata.database, now),
        Remover(curation, store, emit),
        now,
    )


def dry_run_toolkit(toolkit: Toolkit) -> Toolkit:
    """The same, but for files, which stay; to be used with a copy of the database."""
    remover = Remover(toolkit.curation, _Pretended(toolkit.store), lambda event: None)
    return replace(toolkit, remover=remover, is_dry=True)


def limits_of(config: Config) -> Limits:
    return Limits(int(config.storage.max_size), int(config.storage.min_free))


class LockUnusable(RegmirrorError):
    """A lock file cannot be opened or locked."""


@contextmanager
def try_turn(root: Path, what: str = "collection") -> Iterator[bool]:
    """Whether no other process is at ``what`` here; until the end, none will be.

    Raises LockUnusable.
    """
    path = root / f"{what}.lock"
    with ExitStack() as opened:
        try:
            descriptor = create_lock(path)
            opened.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_alone = False
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise LockUnusable(f"the lock {path} cannot be used: {reason}; see who owns it") from error
        else:
            is_alone = True
        yield is_alone


class InvalidationMarker:
    """Tells the servers on a store that something was taken away behind their backs.

    It is a file that is touched; they look at it several times a second and forget what they
    remember.
    """

    def __init__(self, root: Path) -> None:
        self._path = root / "notice"
        self._seen = self._stamp()

    def give(self) -> None:
        os.close(create(self._path, os.O_RDONLY))
        try:
            os.utime(self._path)
        except PermissionError:  # another user's, from an older version: take its place
            new = self._path.with_name(f".notice-{os.getpid()}")
            new.unlink(missing_ok=True)
            os.close(create(new, os.O_RDONLY))
            new.replace(self._path)

    def is_new(self) -> bool:
        """Whether it was given since the last look."""
        before, self._seen = self._seen, self._stamp()
        return before != self._seen

    def _stamp(self) -> tuple[int, int]:
        try:
            status = self._path.stat()
        except OSError:
            return 0, 0
        return status.st_ino, status.st_mtime_ns


class _Pretended:
    """A store from which nothing is removed; what is being read is told all the same."""

    def __init__(self, store: LocalBlobStore) -> None:
        self._store = store

    def exists(self, digest: Digest) -> bool:
        return self._store.exists(digest)

    def lock_for_removal(self, digest: Digest) -> Removable | None:
        found = self._store.lock_for_removal(digest)
        if found is None:
            return None
        found.close()
        return _Kept(found.size)


@dataclass
class _Kept:
    size: int

    def unlink(self) -> None:
        """It stays."""

    def close(self) -> None:
        """It is not locked."""
