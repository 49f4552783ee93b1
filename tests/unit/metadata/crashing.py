"""A process that ends in the middle of its work, for tests that go on with what it leaves."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

from regmirror.blobs.base import BlobStore
from regmirror.metadata.upgrade import upgrade
from regmirror.oci.names import Digest


@functools.cache
def empty_database() -> Path:
    """Made once: bringing it to the schema takes longer than a story."""
    directory = Path(tempfile.mkdtemp(prefix="store-machine-"))
    atexit.register(shutil.rmtree, directory)
    upgrade(directory / "empty.db")
    return directory / "empty.db"


class Crash(Exception):
    """The process ends here."""


class Steps:
    """Counts transactions and removals of files; ``crash_before`` is the last one, not done."""

    def __init__(self) -> None:
        self.crash_before: int | None = None

    def take(self) -> None:
        if self.crash_before is not None:
            self.crash_before -= 1
            if self.crash_before <= 0:
                raise Crash


class CrashingStore:
    """The files of a process that ends in the middle."""

    def __init__(self, store: BlobStore, steps: Steps) -> None:
        self._store, self._steps = store, steps
        self.exists = store.exists

    def lock_for_removal(self, digest: Digest) -> Any:
        locked = self._store.lock_for_removal(digest)
        if locked is not None:
            unlink = locked.unlink

            def step() -> None:
                self._steps.take()
                unlink()

            locked.unlink = step
        return locked
