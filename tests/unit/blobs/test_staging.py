"""Staged files: the election of the writer, and the state that it shares."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from regmirror.blobs.local import LocalBlobStore
from regmirror.blobs.staging import DownloadState, Reservation, StagedFile, Staging
from regmirror.errors import Unavailable, UpstreamFailed, UpstreamNotFound, UpstreamRateLimited
from regmirror.oci.names import Digest

DIGEST = Digest.of(b"content")
OLD, NEW = 1_000.0, 2_000.0
OpenStaged = Callable[..., StagedFile]


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    staging = Staging(tmp_path / "staging")
    staging.prepare()
    return staging


@pytest.fixture
def opened(staging: Staging) -> Iterator[OpenStaged]:
    """A function that opens the files of a blob, as one process more would."""
    files: list[StagedFile] = []

    def open_staged(digest: Digest = DIGEST) -> StagedFile:
        files.append(staging.open(digest))
        files[-1].open_bytes(create=True)
        return files[-1]

    yield open_staged
    for staged in files:
        staged.close()


def names(staging: Staging) -> list[str]:
    return sorted(path.name for path in staging.directory.iterdir())


def leave(staging: Staging, digest: Digest, *, at: float, data: bytes = b"half") -> None:
    """What a writer that died at that time has left."""
    staged = staging.open(digest)
    staged.open_bytes(create=True)
    os.pwrite(staged.descriptor, data, 0)
    staged.write_state(DownloadState(flowing=True, size=100))
    staged.close()
    for path in staging.directory.glob(f"*{digest.encoded}*"):
        os.utime(path, (at, at))


def test_one_of_many_becomes_the_writer(opened: OpenStaged) -> None:
    first, second = opened(), opened()
    assert first.try_lock()
    assert not second.try_lock()


def test_another_process_becomes_the_writer_when_the_first_closes(opened: OpenStaged) -> None:
    first, second = opened(), opened()
    first.try_lock()
    first.close()
    assert second.try_lock()


def test_a_duplicate_of_the_bytes_does_not_keep_the_lock(opened: OpenStaged) -> None:
    first, second = opened(), opened()
    first.try_lock()
    reader = os.dup(first.descriptor)
    first.close()
    assert second.try_lock()
    os.close(reader)


def test_every_process_sees_the_size_of_the_file(opened: OpenStaged) -> None:
    writer, reader = opened(), opened()
    os.pwrite(writer.descriptor, b"12345", 0)
    assert reader.size == 5


@pytest.mark.parametrize(
    "state",
    [
        DownloadState(),
        DownloadState(flowing=True, size=5),
        DownloadState(failure="UpstreamFailed", upstream="registry.test", message="über " * 100),
    ],
)
def test_every_process_reads_the_state_of_the_writer(opened: OpenStaged, state: DownloadState) -> None:
    writer, reader = opened(), opened()
    writer.write_state(DownloadState(failure="X", message="a longer state that was here before" * 20))
    writer.write_state(state)
    assert reader.read_state() == state


@pytest.mark.parametrize("text", ["", "{", "[]", '{"unknown": 1}', "\x00" * 50])
def test_a_state_that_cannot_be_parsed_counts_as_none(
    staging: Staging, opened: OpenStaged, text: str
) -> None:
    staged = opened()
    (staging.directory / f"sha256-{DIGEST.encoded}.note").write_text(text)
    assert staged.read_state() == DownloadState()


def test_a_shared_failure_keeps_its_reason_and_its_retry_time(opened: OpenStaged) -> None:
    writer, reader = opened(), opened()
    error = UpstreamRateLimited("registry.test", "too many requests", reason="limit", retry_after=30)
    writer.write_state(DownloadState.of_failure(error, "registry.test/team/app"))
    shared = reader.read_state().find_failure()
    assert isinstance(shared, UpstreamRateLimited)
    assert (shared.message, shared.reason, shared.retry_after) == (error.message, "limit", 30)


def test_a_state_without_reason_and_retry_time_is_read(staging: Staging, opened: OpenStaged) -> None:
    """An earlier version has written it."""
    staged = opened()
    staged.write_state(DownloadState(failure="UpstreamFailed", upstream="registry.test", message="broke off"))
    path = staging.directory / f"sha256-{DIGEST.encoded}.note"
    fields = json.loads(path.read_text())
    del fields["reason"], fields["retry_after"]
    path.write_text(json.dumps(fields))
    failure = staged.read_state().find_failure()
    assert isinstance(failure, UpstreamFailed)
    assert (failure.message, failure.reason, failure.retry_after) == ("registry.test: broke off", "", None)


def test_discarded_files_are_gone_by_name_and_still_readable(staging: Staging, opened: OpenStaged) -> None:
    writer, reader = opened(), opened()
    os.pwrite(writer.descriptor, b"12345", 0)
    writer.discard()
    assert names(staging) == []
    assert not reader.is_current()
    assert os.pread(reader.descriptor, 10, 0) == b"12345"


def test_a_file_that_was_replaced_is_not_current(opened: OpenStaged) -> None:
    old = opened()
    assert old.is_current()
    old.discard()
    new = opened()
    assert new.is_current()
    assert not old.is_current()


def test_a_committed_file_is_recognised_by_its_descriptor(
    tmp_path: Path, staging: Staging, opened: OpenStaged
) -> None:
    writer, reader, store = opened(), opened(), LocalBlobStore(tmp_path)
    store.prepare()
    assert not store.is_stored_as(DIGEST, reader.descriptor)
    writer.path.rename(store.path(DIGEST))
    writer.delete_state()
    assert store.is_stored_as(DIGEST, reader.descriptor)
    assert not reader.is_current()
    assert names(staging) == []


def test_another_stored_file_is_no_commit_of_this_one(tmp_path: Path, opened: OpenStaged) -> None:
    reader, store = opened(), LocalBlobStore(tmp_path)
    store.prepare()
    store.path(DIGEST).write_bytes(b"somebody else's")
    assert not store.is_stored_as(DIGEST, reader.descriptor)


def test_until_the_bytes_are_opened_there_is_only_a_state_file(staging: Staging) -> None:
    """B100: a download without a response occupies one descriptor and one file."""
    staged = staging.open(DIGEST)
    assert names(staging) == [f"sha256-{DIGEST.encoded}.note"]
    assert (staged.descriptor, staged.size) == (-1, 0)
    assert not staged.open_bytes()
    assert names(staging) == [f"sha256-{DIGEST.encoded}.note"]
    assert staged.open_bytes(create=True)
    staged.close()


def test_the_bytes_of_another_writer_are_not_opened(staging: Staging) -> None:
    """B1: a state describes its own bytes only."""
    old = staging.open(DIGEST)
    old.discard()
    new = staging.open(DIGEST)
    assert new.try_lock()
    assert new.open_bytes(create=True)
    assert not old.open_bytes()
    new.close()
    old.close()


def test_of_a_state_from_before_the_boot_only_the_size_is_used(
    opened: OpenStaged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B7: after a power failure a state may be on disk without the bytes that it describes."""
    writer, reader = opened(), opened()
    monkeypatch.setattr("regmirror.blobs.staging._boot_id", lambda: "before")
    writer.write_state(DownloadState(flowing=True, verified=True, size=5, origin="registry.test/team/app"))
    monkeypatch.setattr("regmirror.blobs.staging._boot_id", lambda: "now")
    assert reader.read_state() == DownloadState(size=5)


def test_a_state_that_cannot_be_written_is_ignored(
    opened: OpenStaged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B44: the writer continues, and followers read the state before."""
    writer, reader = opened(), opened()
    writer.write_state(DownloadState(size=5))

    def refuse(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", refuse)
    writer.write_state(DownloadState(flowing=True, size=5))
    assert reader.read_state() == DownloadState(size=5)


def test_a_committed_file_stays_locked_while_a_duplicate_is_open(tmp_path: Path, opened: OpenStaged) -> None:
    """B40: who has followed its download is a reader of the stored blob."""
    store = LocalBlobStore(tmp_path)
    store.prepare()
    writer = opened()
    writer.try_lock()
    reader = os.dup(writer.descriptor)
    writer.path.rename(store.path(DIGEST))
    writer.close()
    assert store.lock_for_removal(DIGEST) is None
    os.close(reader)
    removable = store.lock_for_removal(DIGEST)
    assert removable is not None
    removable.close()


def test_a_write_error_is_found_by_writing(staging: Staging, monkeypatch: pytest.MonkeyPatch) -> None:
    """B44: and nothing is left of the trial."""
    assert staging.find_write_error() == ""

    def refuse(*_: object) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "pwrite", refuse)
    assert staging.find_write_error() == "read-only file system"
    assert names(staging) == []


def test_a_sweep_removes_old_files(staging: Staging) -> None:
    """B7: left-over staging is resumed or swept."""
    old, new = Digest.of(b"old"), Digest.of(b"new")
    leave(staging, old, at=OLD)
    leave(staging, new, at=NEW)
    assert staging.sweep(older_than=NEW) == 1
    assert names(staging) == [f"sha256-{new.encoded}", f"sha256-{new.encoded}.note"]


def test_a_sweep_spares_files_with_a_writer(staging: Staging, opened: OpenStaged) -> None:
    leave(staging, DIGEST, at=OLD)
    assert opened().try_lock()
    assert staging.sweep(older_than=NEW) == 0
    assert len(names(staging)) == 2


def test_a_sweep_removes_a_state_file_whose_bytes_were_committed(staging: Staging) -> None:
    """B7: a process that dies between the commit and the end of the state file leaves the latter."""
    leave(staging, DIGEST, at=OLD)
    (staging.directory / f"sha256-{DIGEST.encoded}").unlink()
    assert staging.sweep(older_than=NEW) == 1
    assert names(staging) == []


def test_only_files_with_a_writer_are_in_flight(staging: Staging, opened: OpenStaged) -> None:
    leave(staging, Digest.of(b"left behind"), at=NEW)
    leave(staging, DIGEST, at=NEW)
    assert opened().try_lock()
    assert staging.in_flight() == [(str(DIGEST), 4, 100)]


def test_only_a_file_with_a_writer_is_found(staging: Staging, opened: OpenStaged) -> None:
    """Looking for a download creates nothing."""
    assert staging.find(DIGEST) is None
    assert names(staging) == []
    writer = opened()
    assert staging.find(DIGEST) is None
    assert writer.try_lock()
    found = staging.find(DIGEST)
    assert found is not None
    assert found.has_writer()
    writer.close()
    assert not found.has_writer()
    found.close()


def test_a_failure_is_restored_as_the_error_that_it_was() -> None:
    error = UpstreamNotFound("registry.test", "has no such blob")
    before = DownloadState(size=5, origin="registry.test/team/app")
    state = DownloadState.of_failure(error, "registry.test/team/app", before=before)
    found = state.find_failure()
    assert isinstance(found, UpstreamNotFound)
    assert (found.upstream, str(found)) == (error.upstream, str(error))
    assert (state.size, state.origin) == (5, "registry.test/team/app")


@pytest.mark.parametrize("name", ["Unavailable", "NoSuchError", "annotations"])
def test_a_failure_of_another_kind_is_unavailable(name: str) -> None:
    error = DownloadState(failure=name, message="no").find_failure()
    assert isinstance(error, Unavailable)
    assert DownloadState().find_failure() is None


def test_a_staged_blob_reserves_its_whole_size_while_it_has_a_writer(
    staging: Staging, opened: OpenStaged
) -> None:
    """B40."""
    writer = opened()
    assert writer.try_lock()
    os.pwrite(writer.descriptor, b"half", 0)
    writer.write_state(DownloadState(flowing=True, size=100))
    assert staging.reservations() == {DIGEST: Reservation(100, 96)}
    assert staging.in_flight() == [(DIGEST, 4, 100)]
    writer.close()
    assert staging.reservations() == {DIGEST: Reservation(4, 0)}
    assert staging.in_flight() == []


def test_a_commit_in_progress_reserves_the_size_of_its_state(staging: Staging, opened: OpenStaged) -> None:
    """B40: until the database counts the blob."""
    writer = opened()
    writer.write_state(DownloadState(verified=True, size=7))
    writer.path.unlink()
    assert staging.reservations() == {DIGEST: Reservation(7, 0)}


def test_orphans_are_removed_oldest_first_until_enough_is_free(staging: Staging) -> None:
    """B40."""
    old, new = Digest.of(b"old"), Digest.of(b"new")
    leave(staging, new, at=NEW)
    leave(staging, old, at=OLD)
    assert staging.remove_orphans(0) == []
    assert staging.remove_orphans(1, is_dry=True) == [(old, 4)]
    assert staging.remove_orphans(1) == [(old, 4)]
    assert staging.remove_orphans(100) == [(new, 4)]
    assert names(staging) == []
