"""Reconciliation of files and rows: it finds what garbage collection by queue cannot.

Files and rows diverge when a process is killed between the two, when a disk loses a file, or when
files are changed manually. A row without a file is deleted. A file without a row gets a row and an
entry in the GC queue, and so does every unreferenced row without an entry.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from regmirror.blobs.base import BlobStore
from regmirror.blobs.staging import Staging
from regmirror.metadata.inventory import Inventory
from regmirror.oci.names import Digest

PAGE: Final = 1_000  # rows or files in memory at once
STAGING_MAX_AGE: Final = 7 * 86_400.0  # seconds until an interrupted download is removed
QUARANTINE_MAX_AGE: Final = 7 * 86_400.0  # seconds in which an operator can examine a corrupt blob


@dataclass
class ReconcileSummary:
    """Blobs checked, rows deleted because their file is missing, rows added for files without one."""

    checked: int = 0
    rows_dropped: int = 0
    rows_added: int = 0


async def reconcile(
    inventory: Inventory, store: BlobStore, staging: Staging | None, now: float
) -> ReconcileSummary:
    """Compare all files and rows, in pages of bounded memory; ``now`` is the wall clock.

    Expired files in staging and quarantine are removed, unless ``staging`` is None.
    """
    summary = ReconcileSummary()
    if staging is not None:
        await asyncio.to_thread(staging.sweep, now - STAGING_MAX_AGE)
        await asyncio.to_thread(store.sweep_quarantine, now - QUARANTINE_MAX_AGE)
    await _compare_rows(inventory, store, summary)
    await _compare_files(inventory, store, summary)
    await inventory.enqueue_unreferenced_manifests()
    await inventory.delete_empty_repositories()
    return summary


async def _compare_rows(inventory: Inventory, store: BlobStore, summary: ReconcileSummary) -> None:
    last = ""
    while page := await inventory.blobs_after(last, PAGE):
        last = page[-1].digest
        summary.checked += len(page)
        digests = [row.digest for row in page]
        missing = await asyncio.to_thread(_find_missing, store, digests)
        if missing:
            await inventory.delete_blobs(missing)
            summary.rows_dropped += len(missing)
        await inventory.enqueue([(row.digest, row.stored_at) for row in page if not row.is_referenced])


def _find_missing(store: BlobStore, digests: list[Digest]) -> list[Digest]:
    return [digest for digest in digests if not store.exists(digest)]


async def _compare_files(inventory: Inventory, store: BlobStore, summary: ReconcileSummary) -> None:
    async for page in store.pages(PAGE):
        recorded = await inventory.find_stored([blob.digest for blob in page])
        new = [(blob.digest, blob.size, blob.stored_at) for blob in page if blob.digest not in recorded]
        if new:
            await inventory.insert_blobs(new)
            summary.rows_added += len(new)
