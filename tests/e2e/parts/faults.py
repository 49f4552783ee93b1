"""Real faults of machines: disks that are small, full, broken or read-only, and processes that hang.

Everything needs root, is undone when its block ends, and carries the id of this process in its name.
Faults of networks and name servers are in `networks`.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.parts.process import clean_environment, run, wait_until

LARGEST = 256 << 20  # bytes: a larger file system is not the small disk of a test, and is never filled
PIECE = 64 * 1024
MIB = 1 << 20


def root_command(*words: str, check: bool = True) -> str:
    """Run a system command and return its output."""
    return run(words, env=clean_environment(Path("/")), check=check).stdout


# --- disks ---


@contextmanager
def small_tmpfs(directory: Path, size: int = 3 * MIB) -> Iterator[Path]:
    """Put a file system of `size` bytes in memory at the directory, which is made."""
    directory.mkdir(parents=True, exist_ok=True)
    root_command("mount", "-t", "tmpfs", "-o", f"size={size}", f"regmirror-{os.getpid()}", str(directory))
    try:
        yield directory
    finally:
        _unmount(directory)


@dataclass(frozen=True)
class Ext4:
    """A mounted ext4 in a file; `path` is where."""

    path: Path
    device: str

    def make_read_only(self) -> None:
        """Remount read-only; the kernel rejects this while a file is open for writing (`fail` works then)."""
        root_command("mount", "-o", "remount,ro", str(self.path))

    def make_writable(self) -> None:
        """Undo `make_read_only`."""
        root_command("mount", "-o", "remount,rw", str(self.path))

    def fail(self) -> None:
        """Let the kernel find an error, so that it becomes read-only for running writers (EROFS).

        Permanent until the next mount; `is_writable` tests it.
        """
        trigger = Path("/sys/fs/ext4") / Path(self.device).name / "trigger_fs_error"
        trigger.write_text("made by a test")

    def is_writable(self) -> bool:
        """Return whether a file can be written there."""
        probe = self.path / f".probe-{os.getpid()}"
        try:
            probe.write_bytes(b"x")
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EIO, errno.ENOSPC):
                raise
            return False
        probe.unlink()
        return True


@contextmanager
def small_ext4(directory: Path, size: int = 8 * MIB, *, inodes: int = 512) -> Iterator[Ext4]:
    """Put an ext4 of `size` bytes at the directory, which is made; `inodes` is how many files it can hold."""
    directory.mkdir(parents=True, exist_ok=True)
    image = directory.with_name(f"{directory.name}-{os.getpid()}.ext4")
    with image.open("wb") as file:
        file.truncate(size)
    root_command("mkfs.ext4", "-q", "-m", "0", "-N", str(inodes), "-O", "^has_journal", str(image))
    try:
        root_command("mount", "-o", "loop,errors=remount-ro", str(image), str(directory))
        try:
            device = root_command("findmnt", "-n", "-o", "SOURCE", "--mountpoint", str(directory)).strip()
            yield Ext4(directory, device)
        finally:
            _unmount(directory)
    finally:
        image.unlink()


def _unmount(directory: Path) -> None:
    """Works while a file is open there, too; the file system ends when the last file is closed."""
    done = run(["umount", str(directory)], env=clean_environment(Path("/")), check=False)
    if done.returncode:
        root_command("umount", "--lazy", str(directory))


def fill_disk(directory: Path) -> Path:
    """Write until no byte fits any more, and return the file; AssertionError on a large disk."""
    assert shutil.disk_usage(directory).free <= LARGEST, f"{directory} is not on a small disk"
    filler = directory / f".filler-{os.getpid()}"
    with filler.open("ab", buffering=0) as file:
        piece = bytes(PIECE)
        while piece:
            try:
                file.write(piece)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                piece = piece[: len(piece) // 2]
    return filler


def free_disk(directory: Path) -> None:
    """Remove the file that `fill_disk` wrote."""
    (directory / f".filler-{os.getpid()}").unlink(missing_ok=True)


@contextmanager
def full_disk(directory: Path) -> Iterator[None]:
    """Nothing fits inside this block."""
    try:
        fill_disk(directory)
        yield
    finally:
        free_disk(directory)


# --- processes ---


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """A stopped process, for which the kernel still accepts connections and bytes."""
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: process_state(pid) == "T", timeout=5, description=f"process {pid} to stop")
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def process_state(pid: int) -> str:
    """The letter that the kernel has for it: R, S, T (stopped) …"""
    return (
        Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    )
