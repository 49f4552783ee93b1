"""Files that are still arriving, and who writes them.

Each blob in flight has two files, shared by every process that works on the store:

    staging/<algorithm>-<hex>.note    a line of JSON: whose upstream brings it, the whole size, or why
                                      the writer gave up
    staging/<algorithm>-<hex>         the bytes so far; made when an upstream has answered with them

An exclusive ``flock`` on the note elects the one writer. The kernel releases it when the
writer ends in whatever way, so a follower that obtains it either finds the blob adopted, or
the writer's reason for giving up, or takes over where the writer stopped.

Every process that has the bytes open holds a shared ``flock`` on them, so that they are not removed
once they are adopted as a stored blob (see local.py).
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from regmirror import errors, files
from regmirror.blobs.local import ensure_directory
from regmirror.errors import DigestInvalid, RegistryError, Unavailable, UpstreamError
from regmirror.oci.names import Digest

_NOTE = ".note"  # what follows a staged file's name in that of its note
_NOTE_MAX = 4096  # bytes; written by one pwrite, so that a reader sees the old or the new
_ADOPTING = 3600.0  # seconds a note without its file is believed to be of an adoption
_PROBE = 64 * 1024  # bytes written to see whether there is room


@dataclass(frozen=True, slots=True)
class DownloadState:
    """What the writer tells the followers: ``failure`` is the name of an error class.

    ``flowing`` means that an upstream has answered with content, of ``size`` if it told;
    ``verified`` that all of it is here and right, though not yet safe on disk. ``repository`` is
    the one that is requested for, or that failed; ``origin`` the one whose upstream brought the
    first ``origin_until`` bytes, or all of them.
    """

    flowing: bool = False
    verified: bool = False
    size: int | None = None
    failure: str = ""
    upstream: str = ""
    message: str = ""
    repository: str = ""
    origin: str = ""
    origin_until: int | None = None

    @classmethod
    def of_failure(
        cls, error: RegistryError, repository: str = "", *, before: DownloadState | None = None
    ) -> DownloadState:
        """Why the writer of ``repository`` gave up; what it knew of the bytes ``before`` stays."""
        upstream = error.upstream if isinstance(error, UpstreamError) else ""
        message = error.message.removeprefix(f"{upstream}: ")[:300]
        known = before or cls()
        return cls(
            size=known.size,
            failure=type(error).__name__,
            upstream=upstream,
            message=message,
            repository=repository,
            origin=known.origin,
            origin_until=known.origin_until,
        )

    def find_failure(self) -> RegistryError | None:
        """The writer's failure; None if it has not failed."""
        if not self.failure:
            return None
        kind = getattr(errors, self.failure, None)
        if isinstance(kind, type) and issubclass(kind, UpstreamError):
            return kind(self.upstream, self.message)
        return Unavailable(self.message, retry_after=1)


@dataclass(frozen=True, slots=True)
class Reservation:
    """What a blob in staging takes: its whole ``size``, and what of that is not yet written."""

    size: int
    to_come: int


class StagedFile:
    """One blob in flight: its note, and once that has been opened, its bytes."""

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self.path = path
        self._note_path = path.with_name(path.name + _NOTE)
        self.is_writer = False
        self.descriptor = -1  # of the bytes
        flags = os.O_RDWR | os.O_CLOEXEC
        opened = files.create(self._note_path, flags) if create else os.open(self._note_path, flags)
        self._note_descriptor = opened

    def open_bytes(self, *, create: bool = False) -> bool:
        """Have ``descriptor`` open; false if there are no bytes of this very note."""
        if self.descriptor >= 0:
            return True
        try:
            flags = os.O_RDWR | os.O_CLOEXEC
            descriptor = files.create(self.path, flags) if create else os.open(self.path, flags)
        except FileNotFoundError:
            return False
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if not self.is_writer and not _same(self._note_path, self._note_descriptor):
            os.close(descriptor)  # another writer has begun, and may have made them
            return False
        self.descriptor = descriptor
        return True

    @property
    def size(self) -> int:
        """Bytes written so far, by whichever process; 0 if they are not open."""
        return 0 if self.descriptor < 0 else os.fstat(self.descriptor).st_size

    def try_lock(self) -> bool:
        """Become the writer, if nobody is."""
        try:
            fcntl.flock(self._note_descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self.is_writer = True
        return True

    def is_current(self) -> bool:
        """Whether the paths still lead to these files (not adopted, discarded or replaced)."""
        if not _same(self._note_path, self._note_descriptor):
            return False
        return self.descriptor < 0 or _same(self.path, self.descriptor)

    def has_writer(self) -> bool:
        """Whether another process is the writer."""
        return _is_locked(self._note_descriptor)

    def is_verified(self, state: DownloadState) -> bool:
        """Whether ``state`` says of these very bytes that they are complete and verified.

        A writer that was killed may have left a state file about an earlier file.
        """
        if not state.verified or self.descriptor < 0 or state.size != self.size:
            return False
        return _same(self.path, self.descriptor)

    def read_state(self) -> DownloadState:
        """The writer's note; an empty one while there is none."""
        return _parse_note(os.pread(self._note_descriptor, _NOTE_MAX, 0))

    def write_state(self, note: DownloadState) -> None:
        """Best effort: without it followers wait until the lock is free, and then find out alone."""
        line = json.dumps({**asdict(note), "boot": _boot_id()}).encode()[: _NOTE_MAX - 1] + b"\n"
        with suppress(OSError):
            os.pwrite(self._note_descriptor, line, 0)

    def clear_state(self) -> None:
        """Take back whatever the note says; raises OSError, since it may be of another file."""
        os.ftruncate(self._note_descriptor, 0)

    def truncate(self, size: int) -> None:
        os.ftruncate(self.descriptor, size)

    def discard(self) -> None:
        """Remove the files by name; followers keep what they have open. Writer only.

        What a failing disk does not let go stays for the next writer, or to be swept.
        """
        for path in (self.path, self._note_path):
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def delete_state(self) -> None:
        """Remove the note after the adoption. Writer only."""
        with suppress(OSError):
            self._note_path.unlink(missing_ok=True)

    def abandon(self) -> None:
        """Discard the files if they are this writer's, as far as a failing disk lets it; close them."""
        with suppress(OSError):
            if self.is_writer and self.is_current():
                self.discard()
        self.close()

    def close(self) -> None:
        """Close both files, and with the note release the writer's lock."""
        for descriptor in (self.descriptor, self._note_descriptor):
            if descriptor >= 0:
                os.close(descriptor)
        self.descriptor = self._note_descriptor = -1


class Staging:
    """The directory of files in flight."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def prepare(self) -> None:
        ensure_directory(self.directory)
        files.tighten_directory(self.directory)

    def open(self, digest: Digest) -> StagedFile:
        """The note of ``digest``, created if there is none."""
        return StagedFile(self.directory / f"{digest.algorithm}-{digest.encoded}")

    def find(self, digest: Digest) -> StagedFile | None:
        """Return the staged file that a process is writing; None if no process is. Creates nothing."""
        try:
            staged = StagedFile(self.directory / f"{digest.algorithm}-{digest.encoded}", create=False)
        except FileNotFoundError:
            return None
        if staged.has_writer():
            return staged
        staged.close()
        return None

    def find_write_error(self) -> str:
        """Why nothing can be written here at the moment, by trying it; empty if it can."""
        probe = self.directory / f".probe-{os.getpid()}"
        try:
            descriptor = os.open(probe, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                probe.unlink()
                os.pwrite(descriptor, bytes(_PROBE), 0)
            finally:
                os.close(descriptor)
        except OSError as error:
            return (error.strerror or str(error)).lower()
        return ""

    def sweep(self, older_than: float) -> int:
        """Remove what no writer holds and nobody touched since ``older_than``; how many."""
        removed = 0
        for path, touched_at in self._leftovers():
            if touched_at >= older_than:
                continue
            removed += self._discard(path)
        return removed

    def remove_leftovers(self, wanted: int, *, is_dry: bool = False) -> list[tuple[Digest, int]]:
        """Remove what no writer holds, oldest first, until ``wanted`` bytes are free.

        Digest and size of each; with ``is_dry`` they stay.
        """
        removed: list[tuple[Digest, int]] = []
        for path, _ in sorted(self._leftovers(), key=lambda item: item[1]) if wanted > 0 else ():
            if sum(size for _, size in removed) >= wanted:
                break
            with suppress(OSError, DigestInvalid):
                digest, size = Digest(path.name.replace("-", ":", 1)), path.stat().st_size
                if size and self._discard(path, is_dry=is_dry):
                    removed.append((digest, size))
        return removed

    def _discard(self, path: Path, *, is_dry: bool = False) -> bool:
        """Remove a left-over, unless a writer holds it."""
        staged = StagedFile(path)
        try:
            is_left = staged.try_lock() and staged.is_current()
            if is_left and not is_dry:
                staged.discard()
            return is_left
        finally:
            staged.close()

    def _leftovers(self) -> Iterator[tuple[Path, float]]:
        """Each blob's file, or where it was if only its note is left, and when it was touched."""
        for path in list(self.directory.iterdir()):
            try:
                touched_at = path.stat().st_mtime
            except FileNotFoundError:  # adopted meanwhile, by another process
                continue
            if path.name.startswith("."):  # a probe of this moment
                continue
            if path.suffix != _NOTE:
                yield path, touched_at
            elif not path.with_suffix("").exists():
                yield path.with_suffix(""), touched_at

    def reservations(self) -> dict[Digest, Reservation]:
        """What every blob here takes: one that is being written all of what it will have, a
        left-over what it has. One that has been adopted counts until its note is gone, which is
        when the database counts it.
        """
        found = {}
        recent = time.time() - _ADOPTING
        for path in self.directory.glob("sha*-*"):
            with suppress(FileNotFoundError, DigestInvalid):
                if path.suffix == _NOTE:
                    if not path.with_suffix("").exists() and path.stat().st_mtime > recent:
                        size = _parse_note(path.read_bytes()).size or 0
                        found[_digest_of(path.with_suffix(""))] = Reservation(size, 0)
                    continue
                written = path.stat().st_size
                size = max(written, _told_size(path) or 0)
                found[_digest_of(path)] = Reservation(size, size - written)
        return found

    def in_flight(self) -> list[tuple[str, int, int | None]]:
        """Digest, bytes so far and whole size of every blob that some process is writing.

        Only looks: creates nothing, and takes no lock that a writer would wait for.
        """
        found = []
        for path in sorted(self.directory.glob("sha*-*")):
            if path.suffix == _NOTE:
                continue
            with suppress(FileNotFoundError), path.with_name(path.name + _NOTE).open("rb") as note:
                if _is_locked(note.fileno()):
                    told = _parse_note(note.read()).size
                    found.append((path.name.replace("-", ":", 1), path.stat().st_size, told))
        return found


def _digest_of(path: Path) -> Digest:
    return Digest(path.name.replace("-", ":", 1))


def _told_size(path: Path) -> int | None:
    """The whole size of a blob that is being written, if its note tells it."""
    try:
        with path.with_name(path.name + _NOTE).open("rb") as note:
            return _parse_note(note.read()).size if _is_locked(note.fileno()) else None
    except FileNotFoundError:
        return None


def _is_locked(descriptor: int) -> bool:
    """Whether some process holds the writer's lock; a shared lock for an instant tells."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def _parse_note(text: bytes) -> DownloadState:
    """The note in ``text``. Of one from before this machine was started only the size is believed:
    after a power cut it may be on disk without the bytes that it speaks of.
    """
    try:
        fields = json.loads(text.partition(b"\n")[0])
        boot = fields.pop("boot", "")
        note = DownloadState(**fields)
    except (ValueError, TypeError, AttributeError):
        return DownloadState()
    return note if boot == _boot_id() else DownloadState(size=note.size)


@cache
def _boot_id() -> str:
    """What Linux calls the time since this machine was started."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _same(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
