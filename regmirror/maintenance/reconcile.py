"""The backstop of collection: what is stored is compared with what the database says.

Files and rows may part when a process is killed between the two, when a disk loses something, or
when somebody helps by hand. A row without its file goes; a file without its row gets one, and with
it a review; whatever nothing holds and no review awaits is put up for one.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from regmirror.blobs.local import LocalBlobStore
from regmirror.blobs.staging import Staging
from regmirror.metadata.inventory import Inventory
from regmirror.oci.names import Digest

PAGE: Final = 1_000  # rows or files looked at in one go
STAGING_MAX_AGE: Final = 7 * 86_400.0  # seconds until a download that nobody resumes is removed
QUARANTINE_MAX_AGE: Final = 7 * 86_400.0  # seconds an operator has to look at what was wrong


@dataclass
class ReconcileSummary:
    """How many blobs were looked at; rows without files, files without rows."""

    checked: int = 0
    rows_dropped: int = 0
    rows_added: int = 0


async def reconcile(
    inventory: Inventory, store: LocalBlobStore, staging: Staging | None, now: float
) -> ReconcileSummary:
    """Compare everything; ``now`` is the wall clock. Memory does not grow with the store.

    Old left-overs in staging and quarantine are removed, unless ``staging`` is None.
    """
    swept = ReconcileSummary()
    if staging is not None:
        await asyncio.to_thread(staging.sweep, now - STAGING_MAX_AGE)
        await asyncio.to_thread(store.sweep_quarantine, now - QUARANTINE_MAX_AGE)
    await _compare_rows(inventory, store, swept)
    await _compare_files(inventory, store, swept)
    await inventory.put_up_unheld_manifests()
    await inventory.drop_unknown_repositories()
    return swept


async def _compare_rows(inventory: Inventory, store: LocalBlobStore, swept: ReconcileSummary) -> None:
    last = ""
    while page := await inventory.blobs_after(last, PAGE):
        last = page[-1].digest
        swept.checked += len(page)
        digests = [row.digest for row in page]
        lost = await asyncio.to_thread(_absent, store, digests)
        if lost:
            await inventory.drop_rows(lost)
            swept.rows_dropped += len(lost)
        await inventory.enqueue([(row.digest, row.stored_at) for row in page if not row.is_named])


def _absent(store: LocalBlobStore, digests: list[Digest]) -> list[Digest]:
    return [digest for digest in digests if not store.exists(digest)]


async def _compare_files(inventory: Inventory, store: LocalBlobStore, swept: ReconcileSummary) -> None:
    async for page in store.pages(PAGE):
        known = await inventory.known([blob.digest for blob in page])
        fresh = [(blob.digest, blob.size, blob.stored_at) for blob in page if blob.digest not in known]
        if fresh:
            await inventory.adopt_rows(fresh)
            swept.rows_added += len(fresh)
