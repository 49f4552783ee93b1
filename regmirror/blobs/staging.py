"""Staged files: the blobs that are incomplete or not yet verified, and the election of their writers.

A download has two files, shared by every process that works on the store:

    staging/<algorithm>-<hex>.note    the state file, a line of JSON (``DownloadState``)
    staging/<algorithm>-<hex>         the bytes so far, created when an upstream has responded

An exclusive ``flock`` on the state file elects the writer. The kernel releases it when that process
ends. The process that obtains it next finds the blob committed, or the failure of the writer, or
continues where the writer stopped.

Every process that has the bytes open holds a shared ``flock`` on them, so that they are not removed
while they are read after the commit (see ``local``).
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
from regmirror.blobs.local import ensure_directory, is_at
from regmirror.errors import DigestInvalid, RegistryError, Unavailable, UpstreamError
from regmirror.oci.names import Digest

_STATE_SUFFIX = ".note"  # follows the name of a staged file in that of its state file
_STATE_MAX = 4096  # bytes; written by one pwrite, so that a reader sees the old or the new state
_COMMIT_MAX = 3600.0  # seconds for which a state file without bytes counts as a commit in progress
_PROBE = 64 * 1024  # bytes written to find out whether there is space


@dataclass(frozen=True, slots=True)
class DownloadState:
    """The state of a download, which its writer shares with the followers.

    ``flowing``: content arrives, of ``size`` if a response has stated it. ``verified``: all bytes are
    in the file and match the digest, but are not durable yet. ``failure`` is the name of an error
    class, ``reason`` and ``retry_after`` are its fields. ``repository`` is requested, or has failed.
    ``origin`` and ``origin_until`` are the provenance: whose upstream sent the first ``origin_until``
    bytes, or all of them.
    """

    flowing: bool = False
    verified: bool = False
    size: int | None = None
    failure: str = ""
    upstream: str = ""
    message: str = ""
    reason: str = ""
    retry_after: float | None = None
    repository: str = ""
    origin: str = ""
    origin_until: int | None = None

    @classmethod
    def of_failure(
        cls, error: RegistryError, repository: str = "", *, before: DownloadState | None = None
    ) -> DownloadState:
        """The state after a failure for ``repository``; size and provenance of ``before`` are kept."""
        upstream = error.upstream if isinstance(error, UpstreamError) else ""
        message = error.message.removeprefix(f"{upstream}: ")[:300]
        previous = before or cls()
        return cls(
            size=previous.size,
            failure=type(error).__name__,
            upstream=upstream,
            message=message,
            reason=error.reason if isinstance(error, UpstreamError) else "",
            retry_after=error.retry_after,
            repository=repository,
            origin=previous.origin,
            origin_until=previous.origin_until,
        )

    def find_failure(self) -> RegistryError | None:
        """Return the writer's failure as an error; None if it has not failed."""
        if not self.failure:
            return None
        kind = getattr(errors, self.failure, None)
        if isinstance(kind, type) and issubclass(kind, UpstreamError):
            return kind(self.upstream, self.message, reason=self.reason, retry_after=self.retry_after)
        return Unavailable(self.message, retry_after=1)


@dataclass(frozen=True, slots=True)
class Reservation:
    """The space of a staged blob: its whole ``size``, of which ``to_come`` bytes are not written yet."""

    size: int
    to_come: int


class StagedFile:
    """The state file of one download, and after ``open_bytes`` its bytes."""

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self.path = path
        self._state_path = path.with_name(path.name + _STATE_SUFFIX)
        self.is_writer = False
        self.descriptor = -1  # of the bytes
        flags = os.O_RDWR | os.O_CLOEXEC
        opened = files.create(self._state_path, flags) if create else os.open(self._state_path, flags)
        self._state_descriptor = opened

    def open_bytes(self, *, create: bool = False) -> bool:
        """Open ``descriptor``; False if there are no bytes that belong to this state file."""
        if self.descriptor >= 0:
            return True
        try:
            flags = os.O_RDWR | os.O_CLOEXEC
            descriptor = files.create(self.path, flags) if create else os.open(self.path, flags)
        except FileNotFoundError:
            return False
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if not self.is_writer and not is_at(self._state_path, self._state_descriptor):
            os.close(descriptor)  # another writer has started, and the bytes may be its own
            return False
        self.descriptor = descriptor
        return True

    @property
    def size(self) -> int:
        """The number of bytes in the file, whichever process writes them; 0 if it is not open."""
        return 0 if self.descriptor < 0 else os.fstat(self.descriptor).st_size

    def try_lock(self) -> bool:
        """Become the writer; False if another process is."""
        try:
            fcntl.flock(self._state_descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self.is_writer = True
        return True

    def is_current(self) -> bool:
        """Whether the paths still name these files: not committed, discarded or replaced."""
        if not is_at(self._state_path, self._state_descriptor):
            return False
        return self.descriptor < 0 or is_at(self.path, self.descriptor)

    def has_writer(self) -> bool:
        """Whether another process is the writer."""
        return _is_locked(self._state_descriptor)

    def is_verified(self, state: DownloadState) -> bool:
        """Whether ``state`` says of these very bytes that they are complete and verified.

        A writer that was killed may have left a state file about an earlier file.
        """
        if not state.verified or self.descriptor < 0 or state.size != self.size:
            return False
        return is_at(self.path, self.descriptor)

    def read_state(self) -> DownloadState:
        """Return the writer's state; the default one if there is none."""
        return _parse_state(os.pread(self._state_descriptor, _STATE_MAX, 0))

    def write_state(self, state: DownloadState) -> None:
        """Share the state; errors are ignored, because followers can also wait for the lock."""
        line = json.dumps({**asdict(state), "boot": _boot_id()}).encode()[: _STATE_MAX - 1] + b"\n"
        with suppress(OSError):
            os.pwrite(self._state_descriptor, line, 0)

    def clear_state(self) -> None:
        """Clear the state; raises OSError, because a state of earlier bytes would be a false proof."""
        os.ftruncate(self._state_descriptor, 0)

    def truncate(self, size: int) -> None:
        os.ftruncate(self.descriptor, size)

    def discard(self) -> None:
        """Unlink both files; followers keep their descriptors. Writer only.

        A file that a failing disk does not remove stays for the next writer, or for ``sweep``.
        """
        for path in (self.path, self._state_path):
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def delete_state(self) -> None:
        """Remove the state file after the commit. Writer only."""
        with suppress(OSError):
            self._state_path.unlink(missing_ok=True)

    def abandon(self) -> None:
        """Discard the files if this process is their writer, ignoring errors, and close them."""
        with suppress(OSError):
            if self.is_writer and self.is_current():
                self.discard()
        self.close()

    def close(self) -> None:
        """Close both files, which releases the writer's lock."""
        for descriptor in (self.descriptor, self._state_descriptor):
            if descriptor >= 0:
                os.close(descriptor)
        self.descriptor = self._state_descriptor = -1


class Staging:
    """The directory of staged files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def prepare(self) -> None:
        ensure_directory(self.directory)
        files.tighten_directory(self.directory)

    def open(self, digest: Digest) -> StagedFile:
        """Return the staged file of ``digest``; the state file is created if there is none."""
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
        """Try to write, and return the error text; empty if writing works."""
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
        """Remove files without a writer, last changed before ``older_than``; return their number."""
        removed = 0
        for path, changed_at in self._orphans():
            if changed_at >= older_than:
                continue
            removed += self._discard(path)
        return removed

    def remove_orphans(self, wanted: int, *, is_dry: bool = False) -> list[tuple[Digest, int]]:
        """Remove files without a writer, oldest first, until ``wanted`` bytes are free.

        Returns digest and size of each. With ``is_dry`` no file is removed.
        """
        removed: list[tuple[Digest, int]] = []
        for path, _ in sorted(self._orphans(), key=lambda item: item[1]) if wanted > 0 else ():
            if sum(size for _, size in removed) >= wanted:
                break
            with suppress(OSError, DigestInvalid):
                digest, size = Digest(path.name.replace("-", ":", 1)), path.stat().st_size
                if size and self._discard(path, is_dry=is_dry):
                    removed.append((digest, size))
        return removed

    def _discard(self, path: Path, *, is_dry: bool = False) -> bool:
        """Remove an orphaned file; False if it has a writer."""
        staged = StagedFile(path)
        try:
            is_orphan = staged.try_lock() and staged.is_current()
            if is_orphan and not is_dry:
                staged.discard()
            return is_orphan
        finally:
            staged.close()

    def _orphans(self) -> Iterator[tuple[Path, float]]:
        """Yield the path of each staged blob, even if only its state file exists, and its mtime."""
        for path in list(self.directory.iterdir()):
            try:
                changed_at = path.stat().st_mtime
            except FileNotFoundError:  # committed meanwhile by another process
                continue
            if path.name.startswith("."):  # the probe of ``find_write_error``
                continue
            if path.suffix != _STATE_SUFFIX:
                yield path, changed_at
            elif not path.with_suffix("").exists():
                yield path.with_suffix(""), changed_at

    def reservations(self) -> dict[Digest, Reservation]:
        """Return the space of every staged blob: its whole size while it has a writer, else its bytes.

        A committed blob counts until its state file is deleted: from then on the database counts it.
        """
        found = {}
        recent = time.time() - _COMMIT_MAX
        for path in self.directory.glob("sha*-*"):
            with suppress(FileNotFoundError, DigestInvalid):
                if path.suffix == _STATE_SUFFIX:
                    if not path.with_suffix("").exists() and path.stat().st_mtime > recent:
                        size = _parse_state(path.read_bytes()).size or 0
                        found[_digest_of(path.with_suffix(""))] = Reservation(size, 0)
                    continue
                written = path.stat().st_size
                size = max(written, _stated_size(path) or 0)
                found[_digest_of(path)] = Reservation(size, size - written)
        return found

    def in_flight(self) -> list[tuple[str, int, int | None]]:
        """Return digest, bytes so far and whole size of every blob that has a writer.

        Creates nothing, and takes no lock that a writer would wait for.
        """
        found = []
        for path in sorted(self.directory.glob("sha*-*")):
            if path.suffix == _STATE_SUFFIX:
                continue
            with suppress(FileNotFoundError), path.with_name(path.name + _STATE_SUFFIX).open("rb") as state:
                if _is_locked(state.fileno()):
                    size = _parse_state(state.read()).size
                    found.append((path.name.replace("-", ":", 1), path.stat().st_size, size))
        return found


def _digest_of(path: Path) -> Digest:
    return Digest(path.name.replace("-", ":", 1))


def _stated_size(path: Path) -> int | None:
    """Return the whole size of a blob that has a writer, if its state has it."""
    try:
        with path.with_name(path.name + _STATE_SUFFIX).open("rb") as state:
            return _parse_state(state.read()).size if _is_locked(state.fileno()) else None
    except FileNotFoundError:
        return None


def _is_locked(descriptor: int) -> bool:
    """Whether some process holds the writer's lock, tested by a shared lock that is released at once."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def _parse_state(text: bytes) -> DownloadState:
    """Return the state in ``text``. Of one from before the last boot only the size is used.

    After a power failure it may be on disk without the bytes that it describes.
    """
    try:
        fields = json.loads(text.partition(b"\n")[0])
        boot = fields.pop("boot", "")
        state = DownloadState(**fields)
    except (ValueError, TypeError, AttributeError):
        return DownloadState()
    return state if boot == _boot_id() else DownloadState(size=state.size)


@cache
def _boot_id() -> str:
    """Return Linux's identifier of the present boot; empty if it cannot be read."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
