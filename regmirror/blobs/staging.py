"""Files that are still arriving, and who writes them.

Each blob in flight has two files, shared by every process that works on the store:

    staging/<algorithm>-<hex>         the bytes so far; its size says how far the writer is
    staging/<algorithm>-<hex>.note    a line of JSON: the whole size, or why the writer gave up

An exclusive ``flock`` on the first elects the one writer. The kernel releases it when the
writer ends in whatever way, so a follower that obtains it either finds the blob adopted, or
the writer's reason for giving up, or takes over where the writer stopped.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from regmirror.blobs.local import ensure_directory
from regmirror.names import Digest

_NOTE = ".note"  # what follows a staged file's name in that of its note
_NOTE_MAX = 4096  # bytes; written by one pwrite, so that a reader sees the old or the new


@dataclass(frozen=True, slots=True)
class Note:
    """What the writer tells the followers: ``failure`` is the name of an error class.

    ``flowing`` means that the upstream has answered with content, of ``size`` if it told.
    """

    flowing: bool = False
    size: int | None = None
    failure: str = ""
    upstream: str = ""
    message: str = ""


class StagedFile:
    """One blob in flight, opened for reading and writing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._note_path = path.with_name(path.name + _NOTE)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self.descriptor = os.open(path, flags, 0o644)
        try:
            self._note_descriptor = os.open(self._note_path, flags, 0o644)
        except OSError:
            os.close(self.descriptor)
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
        return True

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
        line = json.dumps(asdict(note)).encode()[: _NOTE_MAX - 1] + b"\n"
        os.pwrite(self._note_descriptor, line, 0)

    def truncate(self, size: int) -> None:
        os.ftruncate(self.descriptor, size)

    def discard(self) -> None:
        """Remove the files by name; followers keep what they have open. Writer only."""
        for path in (self.path, self._note_path):
            path.unlink(missing_ok=True)

    def forget_note(self) -> None:
        """Remove the note after the adoption. Writer only."""
        self._note_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close both files; a lock held through this object is released."""
        if self.descriptor < 0:
            return
        # Readers may hold duplicates of the descriptor, and with them the lock: so release it.
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        os.close(self.descriptor)
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
            if path.suffix != _NOTE:
                yield path, touched_at
            elif not path.with_suffix("").exists():
                yield path.with_suffix(""), touched_at

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
