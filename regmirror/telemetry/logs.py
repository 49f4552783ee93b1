"""The log: JSON lines, or coloured text on a terminal.

Paths are logged without their query and client headers are never logged, so that no token or
password reaches the log.

While a worker serves, a thread writes the lines (``in_background``). No response waits for the
log: lines that cannot be written in time are dropped and counted.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import orjson
import structlog

from regmirror.telemetry import events
from regmirror.telemetry.events import Event
from regmirror.telemetry.log_writer import LogWriter


class _Output:
    """The destination of lines: the stream itself, or the writer thread while one runs."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.writer: LogWriter | None = None

    def write(self, text: str) -> None:
        if self.writer is not None:
            self.writer.put(text)
        else:
            self._stream.write(text)

    def flush(self) -> None:
        if self.writer is None:
            self._stream.flush()

    def descriptor(self) -> int | None:
        """The file descriptor of the stream; None for a terminal or a stream without a file."""
        try:
            return None if self._stream.isatty() else int(self._stream.fileno())
        except (OSError, ValueError):
            return None


_output: _Output | None = None  # set by the last call of ``configure``


def configure(stream: Any = None) -> None:
    """Write the log to ``stream``, by default standard error; includes ``logging`` of libraries."""
    global _output  # noqa: PLW0603  # there is one log in a process
    stream = stream or sys.stderr
    renderer: Any = (
        structlog.dev.ConsoleRenderer() if stream.isatty() else structlog.processors.JSONRenderer(_to_json)
    )
    _output = _Output(stream)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        logger_factory=structlog.WriteLoggerFactory(file=_output),  # type: ignore[arg-type]  # has write and flush
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_ToStructlog()], force=True)


@contextmanager
def in_background() -> Iterator[None]:
    """Write lines logged inside the block by a thread; returns when all of them are written."""
    output = _output if structlog.is_configured() else None
    descriptor = output.descriptor() if output is not None else None
    if output is None or descriptor is None:
        yield
        return
    output.flush()
    output.writer = writer = LogWriter(descriptor, _format_dropped)
    try:
        yield
    finally:
        output.writer = None
        writer.close()


def log_info(text: str, **fields: Any) -> None:
    """Log an event of this process, with its process id, since workers share the log."""
    structlog.get_logger().info(text, pid=os.getpid(), **fields)


def log_warning(text: str, **fields: Any) -> None:
    """Log a problem of this process that an operator should know, with its process id."""
    structlog.get_logger().warning(text, pid=os.getpid(), **fields)


class _ToStructlog(logging.Handler):
    """Log the records of libraries in the format of this log."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        failure = record.exc_info[1] if record.exc_info else None
        extra = {"error": repr(failure)} if failure is not None else {}
        log.log(record.levelno, record.getMessage(), logger=record.name, **extra)


class RequestLog:
    """A listener that logs one line for each client request and one for each failure."""

    def __init__(self) -> None:
        self._log = structlog.get_logger()

    def __call__(self, event: Event) -> None:
        match event:
            case events.RequestServed():
                self._request_served(event)
            case events.UpstreamRequestEnded(status=status) if status == 0 or status >= 500:
                self._log.warning("upstream failed", **asdict(event))
            case events.TokenRequested(status=status) if status != 200:
                self._log.warning("token refused", **asdict(event))
            case events.DownloadEnded():
                self._log_end("download ended", event)
            case events.MaintenanceEnded():
                self._log_end(f"{event.what} ended", event)
            case events.CircuitChanged():
                level = self._log.warning if event.is_open else self._log.info
                level("circuit opened" if event.is_open else "circuit closed", **asdict(event))
            case events.BlobRepaired():
                self._log.info("blob healed", **asdict(event))
            case events.BlobRemoved(reason=reason) if reason != "corrupt":
                self._log.info("blob removed", **asdict(event))
            case events.VerificationFailed() | events.BlobRemoved() | events.NotStored():
                self._log.warning(_words(type(event).__name__), **asdict(event))

    def _log_end(self, text: str, event: events.DownloadEnded | events.MaintenanceEnded) -> None:
        level = self._log.warning if event.error else self._log.info
        level(text, **asdict(event))

    def _request_served(self, event: events.RequestServed) -> None:
        fields = _request_fields(event)
        is_failure = event.status >= 500
        if _output is not None and _output.writer is not None:
            # structlog takes ten times as long for the same line.
            fields["event"] = "request"
            fields["level"] = "warning" if is_failure else "info"
            fields["timestamp"] = _timestamp(time.time())
            _output.writer.put(_to_json(fields) + "\n")
        elif is_failure:
            self._log.warning("request", **fields)
        else:
            self._log.info("request", **fields)


def _request_fields(event: events.RequestServed) -> dict[str, Any]:
    fields = {
        "id": event.request_id,
        "client": event.client,
        "method": event.method,
        "path": event.path,
        "status": event.status,
        "upstream": event.upstream,
        "cache": event.cache_status or (event.result if event.kind else ""),
        "bytes": event.sent_bytes,
        "ms": round(event.seconds * 1000, 2),
        "first_byte_ms": round(event.first_byte * 1000, 2),
    }
    if event.error:
        fields["error"] = event.error
    return fields


def _to_json(fields: Any, **_: Any) -> str:
    """The JSON document, on one line; values of other types are written as ``str`` returns them.

    structlog passes ``default``, which is not used: every log line has one format.
    """
    try:
        return orjson.dumps(fields, default=str).decode()
    except TypeError:
        # orjson rejects texts that are not Unicode, such as a path with a lone surrogate, and
        # integers of more than 64 bits.
        return json.dumps(fields, default=str)


def _format_dropped(count: int) -> str:
    fields = {"lines": count, "event": "log lines dropped", "level": "warning"}
    return _to_json({**fields, "timestamp": _timestamp(time.time())}) + "\n"


def _timestamp(at: float) -> str:
    second, fraction = divmod(at, 1)
    return f"{_second(int(second))}.{int(fraction * 1_000_000):06d}Z"


@lru_cache(maxsize=2)
def _second(at: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))


def _words(name: str) -> str:
    """``VerificationFailed`` as ``verification failed``."""
    return "".join(f" {char.lower()}" if char.isupper() else char for char in name).strip()
