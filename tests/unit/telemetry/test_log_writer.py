"""Lines of a log: whole, in order, and never waited for."""

from __future__ import annotations

import errno
import io
import json
import os
import select
import threading
from contextlib import suppress

import pytest
import structlog

from regmirror.telemetry import log_writer as logwriter
from regmirror.telemetry import logs
from regmirror.telemetry.events import RequestServed
from regmirror.telemetry.log_writer import LogWriter
from regmirror.telemetry.logs import RequestLog, configure, in_background

SERVED = RequestServed(
    request_id="0123456789abcdef",
    client="::1",
    method="GET",
    path='/v2/té"am/app/manifests/1',
    status=200,
    kind="manifest",
    upstream="docker.io",
    result="hit",
    cache_status="regmirror; hit",
    sent_bytes=501,
    seconds=0.01234,
    first_byte=0.001,
)
FAILED = RequestServed(
    request_id="a\\b",
    client="",
    method="PUT",
    path="/",
    status=503,
    kind="",
    upstream="unknown",
    result="error",
    cache_status="",
    sent_bytes=0,
    seconds=1e-7,
    first_byte=12.5,
    error="line\nfeed",
)


def tell(count):
    return f"dropped {count}\n"


@pytest.fixture
def pipe():
    read, write = os.pipe()
    yield read, write
    for descriptor in (read, write):
        with suppress(OSError):  # the test has closed it
            os.close(descriptor)


def read_all(descriptor):
    received = b""
    while piece := os.read(descriptor, 65_536):
        received += piece
    return received.decode().splitlines()


def test_every_line_is_there_in_order_when_the_log_is_closed(tmp_path):
    path = tmp_path / "log"
    with path.open("ab") as file:
        writer = LogWriter(file.fileno(), tell)
        for number in range(5_000):
            writer.put(f"{number}\n")
        writer.close()
    assert path.read_text().splitlines() == [str(number) for number in range(5_000)]


def test_two_processes_share_a_pipe_without_mixing_their_lines(pipe):
    """POSIX: what one call writes into a pipe stays together up to PIPE_BUF."""
    read, write = pipe
    received = []
    reader = threading.Thread(target=lambda: received.extend(read_all(read)))
    reader.start()
    writers = {name: LogWriter(write, tell) for name in "ab"}
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
def test_a_pipe_that_nobody_reads_costs_lines_and_tells_how_many(pipe, monkeypatch, limit, value):
    """B100: of lines in any number and of any length."""
    monkeypatch.setattr(logwriter, limit, value)
    read, write = pipe
    line = "x" * (select.PIPE_BUF - 1) + "\n"
    writer = LogWriter(write, tell)
    for _ in range(1_000):
        writer.put(line)  # never waits
    refused = writer._refused
    assert refused > 900
    received = []
    reader = threading.Thread(target=lambda: received.extend(read_all(read)))
    reader.start()
    writer.close()
    os.close(write)
    reader.join()
    assert received.count(line[:-1]) == 1_000 - refused
    told = [item for item in received if item.startswith("dropped")]
    assert sum(int(item.split()[1]) for item in told) == refused


def test_a_full_disk_costs_lines_and_tells_how_many(tmp_path, monkeypatch):
    """B44: and no line is torn when there is room again."""
    path = tmp_path / "log"
    real, responses = os.write, []

    def write(descriptor, data):
        response = responses.pop(0) if responses else len(data)
        if response is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[:response])

    with path.open("ab") as file:
        writer = LogWriter(file.fileno(), tell)
        writer.close()  # from here on by hand
        monkeypatch.setattr(os, "write", write)
        for lines in (["first\n"], ["second\n", "third\n"], ["fourth\n"], ["fifth\n"]):
            responses[:] = {"second\n": [3, None], "fourth\n": [None]}.get(lines[0], [])
            for line in lines:
                writer.put(line)
            writer._write_all()
    assert path.read_text().splitlines() == ["first", "sec", "dropped 3", "fifth"]


@pytest.mark.parametrize("event", [SERVED, FAILED], ids=["served", "failed"])
def test_a_request_is_the_same_line_by_either_path(tmp_path, event):
    direct = io.StringIO()
    configure(direct)
    RequestLog()(event)
    path = tmp_path / "log"
    with path.open("w") as file:
        configure(file)
        with in_background():
            RequestLog()(event)
    expected, found = json.loads(direct.getvalue()), json.loads(path.read_text())
    assert len(expected.pop("timestamp")) == len(found.pop("timestamp"))
    assert list(expected.items()) == list(found.items())
    assert structlog.is_configured()


def test_lines_of_every_kind_keep_their_order(tmp_path):
    path = tmp_path / "log"
    with path.open("w") as file:
        configure(file)
        logs.note("before")
        with in_background():
            RequestLog()(SERVED)
            logs.note("between")
            RequestLog()(FAILED)
        logs.log_warning("after")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["before", "request", "between", "request", "after"]
    assert [line["level"] for line in lines] == ["info", "info", "info", "warning", "warning"]


def test_a_stream_without_a_file_is_written_to_directly():
    stream = io.StringIO()
    configure(stream)
    with in_background():
        logs.note("said")
        assert json.loads(stream.getvalue())["event"] == "said"
