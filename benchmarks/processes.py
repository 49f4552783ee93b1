"""What processes use, by the operating system's own accounting."""

from __future__ import annotations

import os
import time
from pathlib import Path

CORES = os.cpu_count() or 1
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PROC = Path("/proc")


def tree(root: int) -> list[int]:
    """The process and all that descend from it, as far as they still live."""
    found = [root]
    for process in found:  # grows while it is walked
        for children in _PROC.glob(f"{process}/task/*/children"):
            found += [int(child) for child in _read(children).split()]
    return found


def cpu_seconds(root: int) -> float:
    """CPU time of the tree so far: ended threads, and ended processes that were waited for, included."""
    total = 0
    for process in tree(root):
        fields = _read(_PROC / str(process) / "stat").rpartition(")")[2].split()
        total += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    return total / _TICK


def resident(process: int) -> int:
    """Resident bytes of one process."""
    fields = _read(_PROC / str(process) / "statm").split()
    return int(fields[1]) * _PAGE if fields else 0


def _read(path: Path) -> str:
    """The text of a file of /proc; nothing when the process has ended."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def provide_memory(directory: Path, size: int) -> None:
    """Let the next files that are written, of ``size`` bytes in all, find memory at hand.

    A virtual machine gets memory from its host only as it is touched, which makes writing a file ten
    times slower, and hides every difference. What a removed file leaves is used first.
    """
    path, piece = directory / "memory", bytes(1 << 20)
    with path.open("wb") as file:
        for _ in range(0, size, len(piece)):
            file.write(piece)
    os.sync()
    path.unlink()


class ForeignLoad:
    """How busy the machine was with anything but this process and its descendants, since the beginning."""

    def __init__(self) -> None:
        self._began, self._busy, self._own = time.monotonic(), _busy_seconds(), cpu_seconds(os.getpid())

    def share(self) -> float:
        """Of all cores; 0 when the machine was ours, 1 when it was wholly somebody else's."""
        busy = _busy_seconds() - self._busy
        own = cpu_seconds(os.getpid()) - self._own
        return max(0.0, busy - own) / (time.monotonic() - self._began) / CORES


def _busy_seconds() -> float:
    user, nice, system, _idle, _iowait, _irq, _softirq, steal = (
        int(word) for word in _read(_PROC / "stat").split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + steal) / _TICK
