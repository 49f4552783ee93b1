"""CPU time and memory of processes, from /proc."""

from __future__ import annotations

import os
import time
from pathlib import Path

CORES = os.cpu_count() or 1
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PROC = Path("/proc")


def tree(root: int) -> list[int]:
    """Ids of the process and of its living descendants."""
    found = [root]
    for process in found:  # the loop appends to the list
        for children in _PROC.glob(f"{process}/task/*/children"):
            found += [int(child) for child in _read(children).split()]
    return found


def cpu_seconds(root: int) -> float:
    """CPU time of the process tree, including ended threads and reaped child processes."""
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
    """Text of a file in /proc; empty if the process has ended."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def provide_memory(directory: Path, size: int) -> None:
    """Make ``size`` bytes of page cache available for the next files that are written.

    A virtual machine gets memory from its host on first use, which makes writing a file ten times
    slower and hides every difference. The kernel reuses the pages of a removed file first.
    """
    path, piece = directory / "memory", bytes(1 << 20)
    with path.open("wb") as file:
        for _ in range(0, size, len(piece)):
            file.write(piece)
    os.sync()
    path.unlink()


class ForeignLoad:
    """CPU load of other processes, since construction: all but this process and its descendants."""

    def __init__(self) -> None:
        self._began, self._busy, self._own = time.monotonic(), _busy_seconds(), cpu_seconds(os.getpid())

    def share(self) -> float:
        """Share of all cores that other processes used, from 0 to 1."""
        busy = _busy_seconds() - self._busy
        own = cpu_seconds(os.getpid()) - self._own
        return max(0.0, busy - own) / (time.monotonic() - self._began) / CORES


def _busy_seconds() -> float:
    user, nice, system, _idle, _iowait, _irq, _softirq, steal = (
        int(word) for word in _read(_PROC / "stat").split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + steal) / _TICK
