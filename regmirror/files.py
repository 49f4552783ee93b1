"""Files of the store: their modes, their owners, and locks.

Other users can read neither blobs nor the database, because both may contain private content; a
stricter umask applies. A file that root creates gets the owner of its directory, so that a server of
another user can use it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

DIRECTORY_MODE: Final = 0o750
FILE_MODE: Final = 0o640
_OTHERS: Final = 0o027  # write access of the group, all access of others


def create(path: Path, flags: int) -> int:
    """Open a file of the store, created if it does not exist; returns the descriptor. Raises OSError."""
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except FileNotFoundError:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        _give_to_owner(path, descriptor)
        return descriptor


def create_lock(path: Path) -> int:
    """Open a file to lock it, created if it does not exist; returns the descriptor. Raises OSError.

    If another user owns the file it is opened for reading, which is enough for ``flock`` except on
    network file systems.
    """
    try:
        return create(path, os.O_RDWR)
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether this process has the exclusive lock of the file ``path``, which the block then owns.

    False if another process has it; with ``wait`` never. Raises OSError if it cannot be locked.
    """
    descriptor = create_lock(path)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            is_locked = True
        except BlockingIOError:
            is_locked = False
        yield is_locked
    finally:
        os.close(descriptor)


def make_directory(directory: Path) -> None:
    """Create a directory of the store unless it exists; its parent must exist."""
    try:
        directory.mkdir(mode=DIRECTORY_MODE)
    except FileExistsError:
        return
    with suppress(OSError):
        _give_to_owner(directory, None)


def tighten(path: Path) -> None:
    """Remove write access of the group and all access of others; skip files of other users."""
    with suppress(OSError):
        mode = path.lstat().st_mode
        if mode & _OTHERS and not path.is_symlink():
            path.chmod(mode & 0o7777 & ~_OTHERS)


def tighten_directory(directory: Path) -> None:
    """Tighten the files of a directory, and then itself.

    Does nothing in a directory that is tight already: it may have a great number of files.
    """
    with suppress(OSError):
        if not directory.stat().st_mode & _OTHERS:
            return
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    tighten(Path(entry.path))
        tighten(directory)


def _give_to_owner(path: Path, descriptor: int | None) -> None:
    if os.geteuid():
        return
    owner = path.parent.stat()
    os.chown(path if descriptor is None else descriptor, owner.st_uid, owner.st_gid)
