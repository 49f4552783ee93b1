"""A reconciliation and a collection by a process of its own, as ``regmirror gc`` does beside a server.

python -m tests.integration.collecting STORAGE GRACE REPEAT [DIE_BEFORE]

Collects REPEAT times. With DIE_BEFORE the process kills itself before that step; steps are
transactions and removals of files. Prints the number of steps.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from regmirror.blobs import local
from regmirror.config.schema import Config
from regmirror.maintenance.gc import GcSummary
from regmirror.maintenance.toolkit import open_toolkit
from regmirror.maintenance.turns import try_turn
from regmirror.metadata.store import MetadataStore
from regmirror.metadata.upgrade import database_path

PAUSE = 0.05  # seconds between collections


class Steps:
    """Ends the process by SIGKILL before a step; 0 is never."""

    def __init__(self, die_before: int = 0) -> None:
        self.taken, self._die_before = 0, die_before

    def take(self) -> None:
        self.taken += 1
        if self.taken == self._die_before:
            os.kill(os.getpid(), signal.SIGKILL)


async def collect(storage: Path, grace: float, steps: Steps | None = None, ahead: float = 0.0) -> GcSummary:
    """Reconcile and collect once, with a clock that is ``ahead`` by so many seconds."""
    metadata = MetadataStore(database_path(storage))
    if steps is not None:
        _count_transactions(metadata, steps)
    config = Config.model_validate({"gc": {"grace": f"{grace}s", "keep_untagged": f"{grace}s"}})
    try:
        toolkit = open_toolkit(storage, metadata, lambda event: None, lambda: time.time() + ahead)
        await toolkit.reconcile()
        summary = await toolkit.collector(config).collect(lambda removal: None)
        toolkit.news.publish()
        return summary
    finally:
        await metadata.close()


def _count_transactions(metadata: MetadataStore, steps: Steps) -> None:
    write = metadata.database.write_exclusive

    @asynccontextmanager
    async def counted() -> AsyncIterator[Any]:
        steps.take()
        async with write() as connection:
            yield connection

    metadata.database.write_exclusive = counted


def _count_removals(steps: Steps) -> None:
    unlink = local.Removable.unlink

    def counted(self: local.Removable) -> None:
        steps.take()
        unlink(self)

    local.Removable.unlink = counted


async def _main(storage: Path, grace: float, repeat: int, die_before: int) -> None:
    steps = Steps(die_before)
    _count_removals(steps)
    for _ in range(repeat):
        with try_turn(storage, "collection") as is_alone:
            if is_alone:
                await collect(storage, grace, steps)
        if repeat > 1:
            await asyncio.sleep(PAUSE)
    print(steps.taken)  # noqa: T201  # its result


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), int((*sys.argv, "0")[4])))
