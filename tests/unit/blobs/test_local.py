"""Blobs as files: what is special about this store. Its contract is in ``tests/contract``."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from regmirror.blobs import open_store
from regmirror.blobs.base import BlobStore
from regmirror.blobs.local import (
    LocalBlobStore,
    count_cached,
    ensure_directory,
    is_at,
    read_cached,
    read_pieces,
)
from regmirror.oci.names import Digest

DATA = b"0123456789" * 1_000
DIGEST = Digest.of(DATA)


@pytest.fixture
def store(tmp_path: Path) -> LocalBlobStore:
    store = LocalBlobStore(tmp_path / "store")
    store.prepare()
    return store


@pytest.fixture
def stored(store: LocalBlobStore) -> Path:
    path = store.path(DIGEST)
    path.write_bytes(DATA)
    return path


def test_a_store_is_opened_without_creating_a_directory(tmp_path: Path) -> None:
    store: BlobStore = open_store(tmp_path / "absent")
    assert store.open(DIGEST) is None
    assert [*store.scan()] == []
    assert not (tmp_path / "absent").exists()


def test_a_directory_that_cannot_be_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError):
        ensure_directory(tmp_path / "closed")


def test_a_file_that_cannot_be_opened_is_no_absent_blob(store: LocalBlobStore) -> None:
    store.path(DIGEST).symlink_to(store.path(DIGEST))
    with pytest.raises(OSError, match="symbolic"):
        store.open(DIGEST)
    with pytest.raises(OSError, match="symbolic"):
        store.lock_for_removal(DIGEST)
    with pytest.raises(OSError, match="symbolic"):
        store.open_for_verification(DIGEST)


@pytest.mark.usefixtures("stored")
def test_a_lock_that_fails_leaves_no_descriptor_open(
    store: LocalBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B17."""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    before = len([*Path("/proc/self/fd").iterdir()])
    monkeypatch.setattr("fcntl.flock", fail)
    with pytest.raises(OSError, match="Input/output"):
        store.lock_for_removal(DIGEST)
    assert len([*Path("/proc/self/fd").iterdir()]) == before
    blob = store.open(DIGEST)  # a reader needs no lock
    assert blob is not None
    blob.close()


async def test_a_file_that_ends_early_is_an_error(stored: Path) -> None:
    descriptor = os.open(stored, os.O_RDONLY)
    with pytest.raises(OSError, match="ends at"):
        assert [piece async for piece in read_pieces(descriptor, 0, len(DATA) + 1)]
    os.close(descriptor)


async def test_bytes_that_are_not_in_memory_are_read_by_a_thread(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B18."""
    monkeypatch.setattr("regmirror.blobs.local.read_cached", lambda *_: 0)
    descriptor = os.open(stored, os.O_RDONLY)
    assert b"".join([piece async for piece in read_pieces(descriptor, 3, 103)]) == DATA[3:103]
    os.close(descriptor)


@pytest.mark.parametrize(
    ("error", "count"), [(BlockingIOError(), 0), (OSError(errno.EOPNOTSUPP, "unsupported"), len(DATA))]
)
def test_a_file_system_without_the_flag_counts_as_cached(
    stored: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, count: int
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(os, "preadv", fail)
    descriptor = os.open(stored, os.O_RDONLY)
    assert count_cached(descriptor, 0, len(DATA), 4_096) == count
    assert read_cached(descriptor, bytearray(5), 0) == 0
    os.close(descriptor)


def test_a_path_without_a_file_names_no_open_file(stored: Path) -> None:
    descriptor = os.open(stored, os.O_RDONLY)
    assert is_at(stored, descriptor)
    stored.unlink()
    assert not is_at(stored, descriptor)
    os.close(descriptor)


async def test_a_quarantine_that_was_too_late_puts_the_new_file_back(
    store: LocalBlobStore, stored: Path
) -> None:
    """B6: it may be a good one."""
    opened = store.open_for_verification(DIGEST)
    assert opened is not None
    stored.unlink()
    stored.write_bytes(b"new")
    assert not opened.quarantine()
    opened.close()
    assert stored.read_bytes() == b"new"
    assert [*(store.root / "quarantine").iterdir()] == []


async def test_old_files_leave_the_quarantine(store: LocalBlobStore, stored: Path) -> None:
    assert await store.quarantine(DIGEST)
    (store.root / "quarantine" / "directory").mkdir()
    (quarantined,) = [path for path in (store.root / "quarantine").iterdir() if path.is_file()]
    store.sweep_quarantine(quarantined.stat().st_ctime)
    assert quarantined.exists()
    store.sweep_quarantine(quarantined.stat().st_ctime + 1)
    assert not quarantined.exists()
    assert not stored.exists()


async def test_a_commit_that_cannot_sync_the_directory_is_undone(
    store: LocalBlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B44."""
    staged = tmp_path / "staged"
    staged.write_bytes(DATA)
    real = os.fsync

    def fail(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().is_dir():
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        await store.commit(staged, DIGEST)
    assert not store.exists(DIGEST)
