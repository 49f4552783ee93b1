"""Files that are still arriving, and who writes them.

Each blob in flight has two files, shared by every process that works on the store:

    staging/<algorithm>-<hex>         the bytes so far; its size says how far the writer is
    staging/<algorithm>-<hex>.note    a line of JSON: the whole size, or why the writer gave up

An exclusive ``flock`` on the first elects the one writer. The kernel releases it when the
writer ends in whatever way, so a follower that obtains it either finds the blob adopted, or
the writer's reason for giving up, or takes over where the writer stopped.

An adopted file is a stored blob, on which a lock means something else: whoever reads it holds a
shared one, so that it is not removed (see local.py).
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from regmirror import errors
from regmirror.blobs.local import ensure_directory
from regmirror.errors import DigestInvalid, RegistryError, Unavailable, UpstreamError
from regmirror.names import Digest

_NOTE = ".note"  # what follows a staged file's name in that of its note
_NOTE_MAX = 4096  # bytes; written by one pwrite, so that a reader sees the old or the new
_ADOPTING = 3600.0  # seconds a note without its file is believed to be of an adoption
_PROBE = 64 * 1024  # bytes written to see whether there is room


@dataclass(frozen=True, slots=True)
class Note:
    """What the writer tells the followers: ``failure`` is the name of an error class.

    ``flowing`` means that ``upstream`` has answered with content, of ``size`` if it told;
    ``verified`` that all of it is here and right, though not yet safe on disk.
    """

    flowing: bool = False
    verified: bool = False
    size: int | None = None
    failure: str = ""
    upstream: str = ""
    message: str = ""

    @classmethod
    def of_failure(cls, error: RegistryError) -> Note:
        upstream = error.upstream if isinstance(error, UpstreamError) else ""
        message = error.message.removeprefix(f"{upstream}: ")[:500]
        return cls(failure=type(error).__name__, upstream=upstream, message=message)

    def raise_failure(self) -> None:
        """The writer's failure, if there is one, is the failure of those who followed it."""
        if not self.failure:
            return
        kind = getattr(errors, self.failure, None)
        if isinstance(kind, type) and issubclass(kind, UpstreamError):
            raise kind(self.upstream, self.message)
        raise Unavailable(self.message, retry_after=1)


@dataclass(frozen=True, slots=True)
class Reservation:
    """What a blob in staging takes: its whole ``size``, and what of that is not yet written."""

    size: int
    to_come: int


class StagedFile:
    """One blob in flight, opened for reading and writing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._note_path = path.with_name(path.name + _NOTE)
        self.is_writer = False
        self._is_shared = False
        self._note_descriptor = -1
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self.descriptor = os.open(path, flags, 0o644)
        try:
            self._note_descriptor = os.open(self._note_path, flags, 0o644)
        except OSError:
            if self.size == 0 and self.try_lock():  # created a moment ago, by us
                self.discard()
            self.close()
            raise

    @property
    def size(self) -> int:
        """Bytes written so far, by whichever process."""
        return os.fstat(self.descriptor).st_size

    def try_lock(self) -> bool:
        """Become the writer, if nobody is."""
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self.is_writer = True
        return True

    def share(self) -> None:
        """The file has been adopted: descriptors of it that stay open keep it from being removed."""
        with suppress(OSError):
            fcntl.flock(self.descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            self._is_shared = True

    def is_current(self) -> bool:
        """Whether both paths still lead to these files (not adopted, discarded or replaced)."""
        return _same(self.path, self.descriptor) and _same(self._note_path, self._note_descriptor)

    def is_adopted_as(self, final: Path) -> bool:
        """Whether this very file is the stored blob by now."""
        return _same(final, self.descriptor)

    def read_note(self) -> Note:
        """The writer's note; an empty one while there is none."""
        return _parse_note(os.pread(self._note_descriptor, _NOTE_MAX, 0))

    def write_note(self, note: Note) -> None:
        """Best effort: without it followers wait until the lock is free, and then find out alone."""
        line = json.dumps(asdict(note)).encode()[: _NOTE_MAX - 1] + b"\n"
        with suppress(OSError):
            os.pwrite(self._note_descriptor, line, 0)

    def clear_note(self) -> None:
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

    def forget_note(self) -> None:
        """Remove the note after the adoption. Writer only."""
        with suppress(OSError):
            self._note_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close both files; a writer's lock held through this object is released."""
        if self.descriptor < 0:
            return
        # Readers may hold duplicates of the descriptor, and with them the lock: so release it,
        # unless it is the shared one that is meant to last as long as they do.
        if not self._is_shared:
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        os.close(self.descriptor)
        if self._note_descriptor >= 0:
            os.close(self._note_descriptor)
        self.descriptor = self._note_descriptor = -1


class Staging:
    """The directory of files in flight."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def prepare(self) -> None:
        ensure_directory(self.directory)

    def open(self, digest: Digest) -> StagedFile:
        """The files of ``digest``, created if there are none."""
        return StagedFile(self.directory / f"{digest.algorithm}-{digest.encoded}")

    def find_obstacle(self) -> str:
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
            staged = StagedFile(path)
            try:
                if staged.try_lock() and staged.is_current():
                    staged.discard()
                    removed += 1
            finally:
                staged.close()
        return removed

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
            if path.suffix == _NOTE:
                with suppress(FileNotFoundError, DigestInvalid):
                    if not path.with_suffix("").exists() and path.stat().st_mtime > recent:
                        size = _parse_note(path.read_bytes()).size or 0
                        found[Digest(path.stem.replace("-", ":", 1))] = Reservation(size, 0)
                continue
            with suppress(FileNotFoundError, DigestInvalid), path.open("rb") as staged:
                written = os.fstat(staged.fileno()).st_size
                note = path.with_name(path.name + _NOTE)
                told = _parse_note(note.read_bytes()).size if _is_locked(staged.fileno()) else None
                size = max(written, told or 0)
                found[Digest(path.name.replace("-", ":", 1))] = Reservation(size, size - written)
        return found

    def in_flight(self) -> list[tuple[str, int, int | None]]:
        """Digest, bytes so far and whole size of every blob that some process is writing.

        Only looks: creates nothing, and takes no lock that a writer would wait for.
        """
        found = []
        for path in sorted(self.directory.glob("sha*-*")):
            if path.suffix == _NOTE:
                continue
            with suppress(FileNotFoundError), path.open("rb") as staged:
                if _is_locked(staged.fileno()):
                    note = _parse_note(path.with_name(path.name + _NOTE).read_bytes())
                    size = os.fstat(staged.fileno()).st_size
                    found.append((path.name.replace("-", ":", 1), size, note.size))
        return found


def _is_locked(descriptor: int) -> bool:
    """Whether some process holds the writer's lock; a shared lock for an instant tells."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def _parse_note(text: bytes) -> Note:
    try:
        return Note(**json.loads(text.partition(b"\n")[0]))
    except (ValueError, TypeError):
        return Note()


def _same(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
