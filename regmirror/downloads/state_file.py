"""What processes tell each other of a download by its note, and what they make of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from regmirror.blobs.staging import DownloadState, StagedFile
from regmirror.downloads.download import Download
from regmirror.downloads.fetcher import is_wrong_content
from regmirror.downloads.provenance import Provenance
from regmirror.errors import UpstreamError

FOREIGN_STALL: Final = 1.0  # seconds without a byte from an upstream that is not the follower's own


def open_bytes(download: Download, staged: StagedFile, *, create: bool = False) -> bool:
    """Have the staged bytes open, for readers too; false if there are none."""
    was_open = staged.descriptor >= 0
    if staged.open_bytes(create=create) and not was_open:
        download.use_descriptor(os.dup(staged.descriptor))
    return staged.descriptor >= 0


def note_of(download: Download, *, is_flowing: bool, size: int | None) -> DownloadState:
    """What the writer of ``download`` tells the others."""
    return DownloadState(
        flowing=is_flowing,
        verified=download.verified,
        size=size,
        upstream=download.source.repository.upstream,
        repository=str(download.source.repository),
        origin=download.origin.repository,
        origin_until=download.origin.until,
    )


def see(download: Download, staged: StagedFile, size: int, note: DownloadState, final: Path) -> None:
    """Let readers have what the writer has of the blob: ``size`` bytes, which ``note`` is no older than."""
    if download.verified or not note.flowing or not open_bytes(download, staged):
        return
    download.origin = Provenance(note.origin, note.origin_until)
    if not download.started:
        download.size_told_by = note.repository
        download.begin(note.size)
    download.advance(size)
    if size == note.size and staged.is_verified(note, final):
        download.verify()


def patience_for(download: Download, note: DownloadState) -> float:
    """Seconds without a byte after which the writer is not waited for any more.

    What comes from another upstream, or has not begun for another repository, is of less use.
    """
    source = download.source
    is_other = note.upstream not in ("", source.repository.upstream)
    if not note.flowing:
        is_other = note.repository not in ("", str(source.repository))
    is_foreign = is_other and not download.verified
    return min(FOREIGN_STALL, source.read_timeout) if is_foreign else source.read_timeout


def judge(download: Download, note: DownloadState) -> None:
    """Raise the writer's failure, if it is one for this download: that of its own repository, or
    wrong bytes of which readers have had some.
    """
    error = note.find_failure()
    if error is None:
        return
    if not isinstance(error, UpstreamError):
        raise error
    if is_wrong_content(error) and download.started:
        download.suspect = note.repository
        raise error
    if note.repository:
        download.refuse(note.repository, error)
    if note.repository == str(download.source.repository):
        other = download.take_other()
        if other is None:
            raise error
        download.source = other
