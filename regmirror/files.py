"""Files of the store: what others on the machine may read, and who owns what a command creates.

Other users read neither blobs nor the database: private content is in both. A stricter umask
counts. What root creates belongs to the owner of the directory, so that a server of another user
can use it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

DIRECTORY_MODE: Final = 0o750
FILE_MODE: Final = 0o640
_OTHERS: Final = 0o027  # writing by the group, and everything by others


def create(path: Path, flags: int) -> int:
    """Open a file of the store, and create it if it is not there."""
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except FileNotFoundError:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        _give_to_owner(path, descriptor)
        return descriptor


def create_lock(path: Path) -> int:
    """Open a file to lock it.

    Reading is enough for ``flock``, and all that is allowed if another user made the file; only
    network file systems want more.
    """
    try:
        return create(path, os.O_RDWR)
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def make_directory(directory: Path) -> None:
    """Create a directory of the store, unless it is there; what is above it exists already."""
    try:
        directory.mkdir(mode=DIRECTORY_MODE)
    except FileExistsError:
        return
    with suppress(OSError):
        _give_to_owner(directory, None)


def tighten(path: Path) -> None:
    """Remove write access of the group and all access of others; skip files that are not ours."""
    with suppress(OSError):
        mode = path.lstat().st_mode
        if mode & _OTHERS and not path.is_symlink():
            path.chmod(mode & 0o7777 & ~_OTHERS)


def tighten_directory(directory: Path) -> None:
    """Tighten the files of a directory, and then itself.

    Once that is done it is not looked into again, however many files it has.
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
