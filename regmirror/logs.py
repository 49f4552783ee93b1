"""Logs: JSON lines, or coloured ones on a terminal; a listener to events.

Paths are logged without their query, and no header of a client ever, so that no token or
password can get here.
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import asdict
from typing import Any

import structlog

from regmirror import events
from regmirror.events import Event


def configure(stream: Any = None) -> None:
    """Send structured lines to standard error; ``logging`` of libraries goes there as well."""
    stream = stream or sys.stderr
    renderer: Any = (
        structlog.dev.ConsoleRenderer() if stream.isatty() else structlog.processors.JSONRenderer(default=str)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_ToStructlog()], force=True)


def note(text: str, **fields: Any) -> None:
    """One line about the process itself, with its number: workers share the log."""
    structlog.get_logger().info(text, pid=os.getpid(), **fields)


def note_problem(text: str, **fields: Any) -> None:
    """The same for what somebody should look at."""
    structlog.get_logger().warning(text, pid=os.getpid(), **fields)


class _ToStructlog(logging.Handler):
    """What libraries log, as one of our lines."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        failure = record.exc_info[1] if record.exc_info else None
        extra = {"error": repr(failure)} if failure is not None else {}
        log.log(record.levelno, record.getMessage(), logger=record.name, **extra)


class RequestLog:
    """One line for each request of a client, and one for whatever goes wrong."""

    def __init__(self) -> None:
        self._log = structlog.get_logger()

    def __call__(self, event: Event) -> None:
        match event:
            case events.RequestServed():
                self._request_served(event)
            case events.UpstreamAnswered(status=status) if status == 0 or status >= 500:
                self._log.warning("upstream failed", **asdict(event))
            case events.TokenRequested(status=status) if status != 200:
                self._log.warning("token refused", **asdict(event))
            case events.DownloadEnded():
                level = self._log.warning if event.error else self._log.info
                level("download ended", **asdict(event))
            case events.CircuitChanged():
                level = self._log.warning if event.is_open else self._log.info
                level("circuit opened" if event.is_open else "circuit closed", **asdict(event))
            case events.UpkeepEnded():
                level = self._log.warning if event.error else self._log.info
                level(f"{event.what} ended", **asdict(event))
            case events.BlobHealed():
                self._log.info("blob healed", **asdict(event))
            case events.BlobRemoved(reason=reason) if reason != "corrupt":
                self._log.info("blob removed", **asdict(event))
            case events.VerificationFailed() | events.BlobRemoved() | events.NotStored():
                self._log.warning(_words(type(event).__name__), **asdict(event))

    def _request_served(self, event: events.RequestServed) -> None:
        level = self._log.warning if event.status >= 500 else self._log.info
        level(
            "request",
            id=event.request_id,
            client=event.client,
            method=event.method,
            path=event.path,
            status=event.status,
            upstream=event.upstream,
            cache=event.cache_status or (event.result if event.kind else ""),
            bytes=event.sent_bytes,
            ms=round(event.seconds * 1000, 2),
            first_byte_ms=round(event.first_byte * 1000, 2),
            **({"error": event.error} if event.error else {}),
        )


def _words(name: str) -> str:
    """``VerificationFailed`` as ``verification failed``."""
    return "".join(f" {char.lower()}" if char.isupper() else char for char in name).strip()
