"""The parts that every transfer of a process shares."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from regmirror.blobs.base import BlobStore
from regmirror.blobs.staging import Staging
from regmirror.downloads.source import Sleep, SourceLocator, UpstreamLocator
from regmirror.downloads.space_reservation import Reserve, reserve_nothing
from regmirror.oci.names import Digest, Repository
from regmirror.telemetry.events import Emit

#: Records a committed blob of so many bytes, and links it to repositories.
Record = Callable[[Digest, int, Collection[Repository]], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class TransferContext:
    """The parts that every transfer of a process shares.

    ``record`` is called once for each committed blob, with the repositories whose upstreams have
    sent all of it or proven possession. ``bulk`` are the threads that write and hash. ``reserve``
    is called before bytes are written, with the size that the blob will have by then.
    """

    staging: Staging
    store: BlobStore
    record: Record
    emit: Emit
    bulk: ThreadPoolExecutor
    sleep: Sleep = asyncio.sleep
    reserve: Reserve = reserve_nothing
    locator: SourceLocator = field(default_factory=UpstreamLocator)
