"""Files that are still arriving: who writes them, and what the writer tells the others."""

from __future__ import annotations

import os

import pytest

from regmirror.blobs.local import LocalBlobStore
from regmirror.blobs.staging import DownloadState, Staging
from regmirror.oci.names import Digest

DIGEST = Digest.of(b"content")
OLD, NEW = 1_000.0, 2_000.0


@pytest.fixture
def staging(tmp_path):
    staging = Staging(tmp_path / "staging")
    staging.prepare()
    return staging


@pytest.fixture
def opened(staging):
    """A function that opens the files of a blob, as one process more would."""
    files = []

    def open_staged(digest=DIGEST):
        files.append(staging.open(digest))
        files[-1].open_bytes(create=True)
        return files[-1]

    yield open_staged
    for staged in files:
        staged.close()


def names(staging):
    return sorted(path.name for path in staging.directory.iterdir())


def leave(staging, digest, *, at, data=b"half"):
    """What a writer that died at that time has left."""
    staged = staging.open(digest)
    staged.open_bytes(create=True)
    os.pwrite(staged.descriptor, data, 0)
    staged.write_state(DownloadState(flowing=True, size=100))
    staged.close()
    for path in staging.directory.glob(f"*{digest.encoded}*"):
        os.utime(path, (at, at))


def test_one_of_many_becomes_the_writer(opened):
    first, second = opened(), opened()
    assert first.try_lock()
    assert not second.try_lock()


def test_the_next_becomes_the_writer_when_the_first_closes(opened):
    first, second = opened(), opened()
    first.try_lock()
    first.close()
    assert second.try_lock()


def test_a_reader_that_holds_a_copy_of_the_descriptor_does_not_hold_the_lock(opened):
    first, second = opened(), opened()
    first.try_lock()
    reader = os.dup(first.descriptor)
    first.close()
    assert second.try_lock()
    os.close(reader)


def test_all_see_how_far_the_writer_is(opened):
    writer, reader = opened(), opened()
    os.pwrite(writer.descriptor, b"12345", 0)
    assert reader.size == 5


@pytest.mark.parametrize(
    "note",
    [
        DownloadState(),
        DownloadState(flowing=True, size=5),
        DownloadState(failure="UpstreamFailed", upstream="registry.test", message="über " * 100),
    ],
)
def test_all_read_what_the_writer_noted(opened, note):
    writer, reader = opened(), opened()
    writer.write_state(DownloadState(failure="X", message="a longer note that was here before" * 20))
    writer.write_state(note)
    assert reader.read_state() == note


@pytest.mark.parametrize("text", ["", "{", "[]", '{"unknown": 1}', "\x00" * 50])
def test_a_note_that_cannot_be_read_counts_as_none(staging, opened, text):
    staged = opened()
    (staging.directory / f"sha256-{DIGEST.encoded}.note").write_text(text)
    assert staged.read_state() == DownloadState()


def test_discarded_files_are_gone_by_name_and_still_readable(staging, opened):
    writer, reader = opened(), opened()
    os.pwrite(writer.descriptor, b"12345", 0)
    writer.discard()
    assert names(staging) == []
    assert not reader.is_current()
    assert os.pread(reader.descriptor, 10, 0) == b"12345"


def test_a_file_that_was_replaced_is_not_current(opened):
    old = opened()
    assert old.is_current()
    old.discard()
    new = opened()
    assert new.is_current()
    assert not old.is_current()


def test_an_adopted_file_is_recognised_by_all_who_have_it_open(tmp_path, staging, opened):
    writer, reader, store = opened(), opened(), LocalBlobStore(tmp_path)
    store.prepare()
    assert not store.is_stored_as(DIGEST, reader.descriptor)
    writer.path.rename(store.path(DIGEST))
    writer.delete_state()
    assert store.is_stored_as(DIGEST, reader.descriptor)
    assert not reader.is_current()
    assert names(staging) == []


def test_another_file_at_the_final_place_is_not_an_adoption(tmp_path, opened):
    reader, store = opened(), LocalBlobStore(tmp_path)
    store.prepare()
    store.path(DIGEST).write_bytes(b"somebody else's")
    assert not store.is_stored_as(DIGEST, reader.descriptor)


def test_until_the_bytes_are_opened_there_is_a_note_alone(staging):
    """B100: a download that no upstream has answered holds one descriptor and one file."""
    staged = staging.open(DIGEST)
    assert names(staging) == [f"sha256-{DIGEST.encoded}.note"]
    assert (staged.descriptor, staged.size) == (-1, 0)
    assert not staged.open_bytes()
    assert names(staging) == [f"sha256-{DIGEST.encoded}.note"]
    assert staged.open_bytes(create=True)
    staged.close()


def test_the_bytes_of_another_writer_are_not_opened(staging):
    """B1: what the note says is of its own bytes."""
    old = staging.open(DIGEST)
    old.discard()
    new = staging.open(DIGEST)
    assert new.try_lock()
    assert new.open_bytes(create=True)
    assert not old.open_bytes()
    new.close()
    old.close()


def test_of_a_note_from_before_the_machine_was_started_only_the_size_is_believed(opened, monkeypatch):
    """B7: after a power cut a note may be on disk without the bytes that it speaks of."""
    writer, reader = opened(), opened()
    monkeypatch.setattr("regmirror.blobs.staging._boot_id", lambda: "before")
    writer.write_state(DownloadState(flowing=True, verified=True, size=5, origin="registry.test/team/app"))
    monkeypatch.setattr("regmirror.blobs.staging._boot_id", lambda: "now")
    assert reader.read_state() == DownloadState(size=5)


def test_a_note_that_cannot_be_written_changes_nothing(opened, monkeypatch):
    """B44: the writer goes on, the followers see the note before."""
    writer, reader = opened(), opened()
    writer.write_state(DownloadState(size=5))

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", refuse)
    writer.write_state(DownloadState(flowing=True, size=5))
    assert reader.read_state() == DownloadState(size=5)


def test_an_adopted_file_stays_locked_while_a_copy_of_the_descriptor_is_open(tmp_path, opened):
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


def test_an_obstacle_is_found_by_trying(staging, monkeypatch):
    """B44: and nothing is left of the trial."""
    assert staging.find_write_error() == ""

    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "pwrite", refuse)
    assert staging.find_write_error() == "read-only file system"
    assert names(staging) == []


def test_sweeping_removes_what_nobody_has_touched_for_long(staging):
    """B7: left-over staging is resumed or swept."""
    old, new = Digest.of(b"old"), Digest.of(b"new")
    leave(staging, old, at=OLD)
    leave(staging, new, at=NEW)
    assert staging.sweep(older_than=NEW) == 1
    assert names(staging) == [f"sha256-{new.encoded}", f"sha256-{new.encoded}.note"]


def test_sweeping_spares_what_is_being_written(staging, opened):
    leave(staging, DIGEST, at=OLD)
    assert opened().try_lock()
    assert staging.sweep(older_than=NEW) == 0
    assert len(names(staging)) == 2


def test_sweeping_removes_a_note_whose_file_was_adopted(staging):
    """B7: a process that dies between adopting the file and removing the note leaves the note."""
    leave(staging, DIGEST, at=OLD)
    (staging.directory / f"sha256-{DIGEST.encoded}").unlink()
    assert staging.sweep(older_than=NEW) == 1
    assert names(staging) == []


def test_only_what_is_being_written_is_in_flight(staging, opened):
    leave(staging, Digest.of(b"left behind"), at=NEW)
    leave(staging, DIGEST, at=NEW)
    assert opened().try_lock()
    assert staging.in_flight() == [(str(DIGEST), 4, 100)]
