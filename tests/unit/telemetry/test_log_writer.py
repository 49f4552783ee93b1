"""Log lines are written whole and in order, and no caller waits for them."""

from __future__ import annotations

import errno
import os
import select
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from regmirror.telemetry import log_writer
from regmirror.telemetry.log_writer import LogWriter


def format_dropped(count: int) -> str:
    return f"dropped {count}\n"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    for descriptor in (read, write):
        with suppress(OSError):  # the test has closed it
            os.close(descriptor)


def read_all(descriptor: int) -> list[str]:
    received = b""
    while piece := os.read(descriptor, 65_536):
        received += piece
    return received.decode().splitlines()


def test_every_line_is_there_in_order_when_the_log_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("ab") as file:
        writer = LogWriter(file.fileno(), format_dropped)
        for number in range(5_000):
            writer.put(f"{number}\n")
        writer.close()
    assert path.read_text().splitlines() == [str(number) for number in range(5_000)]


def test_two_processes_share_a_pipe_without_mixing_their_lines(pipe: tuple[int, int]) -> None:
    """POSIX: what one call writes into a pipe stays together up to PIPE_BUF."""
    read, write = pipe
    received: list[str] = []
    reader = threading.Thread(target=lambda: received.extend(read_all(read)))
    reader.start()
    writers = {name: LogWriter(write, format_dropped) for name in "ab"}
    for number in range(2_000):
        for name, writer in writers.items():
            writer.put(f"{name} {number} {name * 300}\n")
    for writer in writers.values():
        writer.close()
    os.close(write)
    reader.join()
    for name in "ab":
        assert [line for line in received if line.startswith(name)] == [
            f"{name} {number} {name * 300}" for number in range(2_000)
        ]


@pytest.mark.parametrize(("limit", "value"), [("LINES_MAX", 10), ("CHARACTERS_MAX", 10 * select.PIPE_BUF)])
def test_a_pipe_that_nobody_reads_loses_lines_and_reports_how_many(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    """B100: neither many lines nor long lines block."""
    monkeypatch.setattr(log_writer, limit, value)
    read, write = pipe
    line = "x" * (select.PIPE_BUF - 1) + "\n"
    writer = LogWriter(write, format_dropped)
    for _ in range(1_000):
        writer.put(line)  # never waits
    rejected = writer._rejected
    assert rejected > 900
    received: list[str] = []
    reader = threading.Thread(target=lambda: received.extend(read_all(read)))
    reader.start()
    writer.close()
    os.close(write)
    reader.join()
    assert received.count(line[:-1]) == 1_000 - rejected
    reported = [item for item in received if item.startswith("dropped")]
    assert sum(int(item.split()[1]) for item in reported) == rejected


def test_a_full_disk_loses_lines_and_reports_how_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B44: the first line after a torn one begins on a line of its own."""
    path = tmp_path / "log"
    real = os.write
    results: list[int | None] = []
    outcomes: dict[str, list[int | None]] = {"second\n": [3, None], "fourth\n": [None]}

    def write(descriptor: int, data: bytes) -> int:
        result = results.pop(0) if results else len(data)
        if result is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[:result])

    with path.open("ab") as file:
        writer = LogWriter(file.fileno(), format_dropped)
        writer.close()  # its thread has ended: the test writes
        monkeypatch.setattr(os, "write", write)
        for lines in (["first\n"], ["second\n", "third\n"], ["fourth\n"], ["fifth\n"]):
            results[:] = outcomes.get(lines[0], [])
            for line in lines:
                writer.put(line)
            writer._write_all()
    assert path.read_text().splitlines() == ["first", "sec", "dropped 3", "fifth"]
