"""The disk of a store: its free space, and the space that downloads will still take."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from regmirror.blobs.staging import Reservation, Staging
from regmirror.oci.names import Digest


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """Bytes that are free, and the reservation of every blob in staging."""

    free: int
    staged: Mapping[Digest, Reservation]


class Disk(Protocol):
    """Where blobs are stored. Its methods block, so call them in a thread."""

    def free(self) -> int:
        """Bytes that can still be written. Raises OSError."""
        ...

    def usage(self) -> DiskUsage:
        """The usage by the downloads of all processes. Raises OSError."""
        ...


class LocalDisk:
    """The file system of the directory ``root``."""

    def __init__(self, root: Path, staging: Staging) -> None:
        self._root, self._staging = root, staging

    def free(self) -> int:
        status = os.statvfs(self._root)
        return status.f_bavail * status.f_frsize

    def usage(self) -> DiskUsage:
        return DiskUsage(self.free(), self._staging.reservations())
