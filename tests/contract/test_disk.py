"""Disk: what every implementation promises. Free space, and what downloads will still take."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from regmirror.blobs.staging import Reservation, Staging
from regmirror.maintenance.disk import Disk, LocalDisk
from regmirror.oci.names import Digest

DIGEST = Digest.of(b"content")


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    staging = Staging(tmp_path / "staging")
    staging.prepare()
    return staging


@pytest.fixture
def disk(tmp_path: Path, staging: Staging) -> Disk:
    return LocalDisk(tmp_path, staging)


def test_free_space_is_what_can_be_written(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """B40: blocks reserved for root do not count."""
    status = SimpleNamespace(f_bavail=3, f_bfree=9, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda path: status)
    assert disk.free() == 3 * 4096
    assert disk.usage().free == 3 * 4096


def test_an_empty_store_has_nothing_staged(disk: Disk) -> None:
    assert disk.free() > 0
    assert dict(disk.usage().staged) == {}


def test_the_usage_has_every_blob_in_flight(disk: Disk, staging: Staging) -> None:
    """B40: the downloads of other processes too."""
    staged = staging.directory / f"{DIGEST.algorithm}-{DIGEST.encoded}"
    staged.write_bytes(b"cont")
    assert dict(disk.usage().staged) == {DIGEST: Reservation(4, 0)}


def test_a_disk_that_is_gone_is_an_error(tmp_path: Path) -> None:
    disk = LocalDisk(tmp_path / "away", Staging(tmp_path / "away" / "staging"))
    with pytest.raises(FileNotFoundError):
        disk.free()
