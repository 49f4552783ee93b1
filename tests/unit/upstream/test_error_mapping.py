"""Errors for exceptions, statuses and Retry-After."""

import errno
import socket
import ssl
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest

from regmirror.errors import (
    UpstreamDenied,
    UpstreamFailed,
    UpstreamNotFound,
    UpstreamRateLimited,
)
from regmirror.upstream.error_mapping import error_for_status, map_error, retry_after


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        (" 0 ", 0.0),
        ("", 60.0),
        ("soon", 60.0),
        ("-5", 60.0),
        ("1.5", 60.0),
        ("99999999999999999999", 3600.0),
        ("Wed, 01 Jan 2025 00:00:30 GMT", 30.0),
        ("Wed, 01 Jan 2025 00:00:30 -0000", 30.0),
        ("Tue, 31 Dec 2024 23:59:00 GMT", 0.0),
        ("Fri, 01 Jan 2027 00:00:00 GMT", 3600.0),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_bounded(text: str, seconds: float) -> None:
    """B30."""
    assert retry_after(text, datetime(2025, 1, 1, tzinfo=UTC)) == seconds


@pytest.mark.parametrize(
    ("status", "kind", "shown"),
    [
        (404, UpstreamNotFound, 404),
        (401, UpstreamDenied, 404),
        (403, UpstreamDenied, 404),
        (429, UpstreamRateLimited, 429),
        (400, UpstreamFailed, 502),
        (500, UpstreamFailed, 502),
        (503, UpstreamFailed, 502),
    ],
)
def test_every_status_has_its_error(status: int, kind: Any, shown: int) -> None:
    """B34."""
    error = error_for_status("docker.io", "host", status, {}, "library/alpine:3")
    assert type(error) is kind
    assert error.status == shown
    assert str(error).startswith("docker.io: ")


KEY = aiohttp.client_reqrep.ConnectionKey("h", 443, True, True, None, None, None)


@pytest.mark.parametrize(
    ("error", "reason", "status"),
    [
        (aiohttp.ClientConnectorDNSError(KEY, OSError(-2, "x")), "dns", 502),
        (socket.gaierror(-2, "x"), "dns", 502),
        (aiohttp.ClientConnectorError(KEY, OSError(errno.ECONNREFUSED, "x")), "refused", 502),
        (
            aiohttp.ClientConnectorError(KEY, OSError("Multiple: [Errno 111] a, [Errno 99] b")),
            "refused",
            502,
        ),
        (aiohttp.ClientConnectorError(KEY, OSError(errno.EHOSTUNREACH, "x")), "network", 502),
        (aiohttp.ClientConnectorError(KEY, OSError(errno.ECONNRESET, "x")), "reset", 502),
        (
            aiohttp.ClientConnectorCertificateError(KEY, ssl.SSLCertVerificationError("x")),
            "certificate",
            502,
        ),
        (aiohttp.ClientConnectorSSLError(KEY, ssl.SSLError(1, "x")), "tls", 502),
        (ssl.SSLError(1, "x"), "tls", 502),
        (aiohttp.ClientProxyConnectionError(KEY, OSError(111, "x")), "proxy", 502),
        (aiohttp.ServerDisconnectedError(), "reset", 502),
        (ConnectionResetError(), "reset", 502),
        (aiohttp.ConnectionTimeoutError(), "connect", 504),
        (aiohttp.SocketTimeoutError(), "read", 504),
        (TimeoutError(), "read", 504),
        (aiohttp.ClientPayloadError("secret-url"), "truncated", 502),
        (aiohttp.InvalidURL("secret-url"), "redirect", 502),
        (UnicodeError("label too long"), "redirect", 502),
    ],
)
def test_failures_are_told_apart(error: Any, reason: str, status: int) -> None:
    """B38."""
    explained = map_error("docker.io", "registry-1.docker.io", error)
    assert explained.reason == reason
    assert explained.status == status
    assert "secret-url" not in str(explained)


@pytest.mark.parametrize(
    ("number", "text"),
    [(socket.EAI_NONAME, "does not exist"), (socket.EAI_AGAIN, "no name server responds")],
)
def test_an_unknown_name_is_told_from_name_servers_that_do_not_answer(number: Any, text: str) -> None:
    """B38: the remedies differ."""
    for error in (socket.gaierror(number, "x"), aiohttp.ClientConnectorDNSError(KEY, OSError(number, "x"))):
        assert text in str(map_error("docker.io", "registry-1.docker.io", error))


@pytest.mark.parametrize(
    "text",
    [
        "Thu, 01 Jan 1970 00:00:00 +9999999999999",
        "Thu, 01 Jan 99999999999999999999 00:00:00 GMT",
        "9" * 5000,
    ],
)
def test_a_time_to_wait_that_cannot_be_computed_is_bounded(text: str) -> None:
    """B30: numbers too large for a date or an int."""
    assert 60 <= retry_after(text) <= 3600
