"""The log has one format, whether a thread writes its lines or the caller."""

from __future__ import annotations

import io
import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from regmirror.telemetry import events, logs
from regmirror.telemetry.events import Event, RequestServed
from regmirror.telemetry.logs import RequestLog, configure, in_background

FIELDS = ("id", "client", "method", "path", "status", "upstream", "cache", "bytes", "ms", "first_byte_ms")
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


@pytest.mark.parametrize("event", [SERVED, FAILED], ids=["served", "failed"])
def test_a_request_has_one_line_with_and_without_a_thread(tmp_path: Path, event: RequestServed) -> None:
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


def test_lines_of_every_kind_keep_their_order(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w") as file:
        configure(file)
        logs.log_info("before")
        with in_background():
            RequestLog()(SERVED)
            logs.log_info("between")
            RequestLog()(FAILED)
        logs.log_warning("after")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["before", "request", "between", "request", "after"]
    assert [line["level"] for line in lines] == ["info", "info", "info", "warning", "warning"]


def test_a_stream_without_a_file_is_written_to_directly() -> None:
    stream = io.StringIO()
    configure(stream)
    with in_background():
        logs.log_info("text")
        assert json.loads(stream.getvalue())["event"] == "text"


def lines_of(*emitted: Event) -> list[dict[str, Any]]:
    stream = io.StringIO()
    configure(stream)
    log = RequestLog()
    for event in emitted:
        log(event)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_the_line_of_a_request_has_its_fields_in_order() -> None:
    (served,), (failed,) = lines_of(SERVED), lines_of(FAILED)
    assert tuple(served) == (*FIELDS, "event", "level", "timestamp")
    assert tuple(failed) == (*FIELDS, "error", "event", "level", "timestamp")
    assert (served["ms"], served["first_byte_ms"], served["cache"]) == (12.34, 1.0, "regmirror; hit")


def test_a_path_that_is_not_unicode_is_logged(tmp_path: Path) -> None:
    """The HTTP server decodes other bytes to lone surrogates, which orjson rejects."""
    path = tmp_path / "log"
    with path.open("w") as file:
        configure(file)
        with in_background():
            RequestLog()(replace(SERVED, path="/v2/\udcff"))
    assert json.loads(path.read_text())["path"] == "/v2/\udcff"


@pytest.mark.parametrize(
    ("event", "text", "level"),
    [
        (events.UpstreamRequestEnded("u", "blob", "GET", "/", 503, 1.0), "upstream failed", "warning"),
        (events.UpstreamRequestEnded("u", "blob", "GET", "/", 0, 1.0, "reset"), "upstream failed", "warning"),
        (events.TokenRequested("u", 401), "token refused", "warning"),
        (events.DownloadEnded("u", "r", "d", 1, 1.0), "download ended", "info"),
        (events.DownloadEnded("u", "r", "d", 1, 1.0, error="x"), "download ended", "warning"),
        (events.CircuitChanged("u", is_open=True), "circuit opened", "warning"),
        (events.CircuitChanged("u", is_open=False), "circuit closed", "info"),
        (events.MaintenanceEnded("scrub", 1, 0, 0, 1.0), "scrub ended", "info"),
        (events.MaintenanceEnded("eviction", 1, 0, 0, 1.0, "x"), "eviction ended", "warning"),
        (events.BlobRepaired("u", "d"), "blob healed", "info"),
        (events.BlobRemoved("d", 1, "evicted"), "blob removed", "info"),
        (events.BlobRemoved("d", 1, "corrupt"), "blob removed", "warning"),
        (events.VerificationFailed("u", "blob", "d", "store"), "verification failed", "warning"),
        (events.NotStored("disk", "full"), "not stored", "warning"),
    ],
)
def test_each_event_is_logged_with_its_level(event: Event, text: str, level: str) -> None:
    (line,) = lines_of(event)
    assert (line["event"], line["level"]) == (text, level)


@pytest.mark.parametrize(
    "event",
    [
        events.UpstreamRequestEnded("u", "blob", "GET", "/", 404, 1.0),
        events.TokenRequested("u", 200),
        events.BytesFetched("u", "blob", 1),
    ],
)
def test_success_of_upstreams_is_not_logged(event: Event) -> None:
    assert lines_of(event) == []


def test_warnings_of_libraries_are_lines_of_the_log() -> None:
    stream = io.StringIO()
    configure(stream)
    try:
        raise ValueError("wrong")
    except ValueError:
        logging.getLogger("library").warning("failed: %s", 1, exc_info=True)
    logging.getLogger("library").warning("plain")
    logging.getLogger("library").info("not logged")
    failed, plain = map(json.loads, stream.getvalue().splitlines())
    assert (failed["event"], failed["logger"]) == ("failed: 1", "library")
    assert failed["error"] == "ValueError('wrong')"
    assert "error" not in plain


def test_dropped_lines_are_reported_in_the_format_of_the_log() -> None:
    line = json.loads(logs._format_dropped(7))
    assert list(line) == ["lines", "event", "level", "timestamp"]
    assert (line["lines"], line["event"], line["level"]) == (7, "log lines dropped", "warning")


def test_the_operating_guide_lists_every_event() -> None:
    root = Path(__file__).parents[3]
    guide = (root / "docs/operating.md").read_text()
    sources = [path.read_text() for path in (root / "regmirror").rglob("*.py")]
    calls = re.compile(r'(?:log_info|log_warning|_log\.info|_log\.warning|_log_end|level)\(\s*"([^":]+)')
    found = {text for source in sources for text in calls.findall(source)} - {"request", "%s"}
    found |= {"circuit closed", "collection ended", "eviction ended", "scrub ended", "log lines dropped"}
    found |= {"verification failed", "not stored", "maintenance failed"}
    assert found > {"blob removed", "connections rejected", "configuration reloaded", "circuit opened"}
    assert [text for text in sorted(found) if f"`{text}`" not in guide] == []
