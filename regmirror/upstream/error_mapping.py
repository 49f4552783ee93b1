"""Errors of upstreams: maps exceptions of aiohttp, ssl and sockets, and HTTP statuses.

Messages name the upstream, what it did and a remedy. They never contain a query string, a header
or the text of a foreign exception, any of which may carry a signature or a password.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

import aiohttp

from regmirror.errors import (
    UpstreamDenied,
    UpstreamError,
    UpstreamFailed,
    UpstreamNotFound,
    UpstreamRateLimited,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from regmirror.upstream.health.circuit import WAIT_MAX

RETRY_AFTER_DEFAULT: Final = 60.0  # seconds
RETRY_AFTER_MAX: Final = WAIT_MAX
#: Everything that a request to an upstream may raise. OSError covers ssl.SSLError, TimeoutError and a
#: refused or reset connection; UnicodeError is a host name that cannot be encoded for DNS.
WIRE_ERRORS: Final = (aiohttp.ClientError, OSError, UnicodeError)

_REMEDIES: Final = {
    "dns": "has a name that does not exist; check the url",
    "refused": "refuses connections; check the url and that it runs",
    "certificate": "shows a certificate that is not trusted; set ca_file to its authority's "
    "certificate, or insecure = true",
    "tls": "does not complete the TLS handshake; check that its port speaks https "
    "(if it does not, write the url with http://)",
    "reset": "broke the connection before it responded",
    "proxy": "cannot be reached through the proxy; check http_proxy and the proxy variables",
    "network": "cannot be reached; check the route and the firewall",
}
_NO_NAME_SERVER: Final = (
    "cannot be resolved, because no name server responds; check this machine's name servers"
)


def map_error(upstream: str, host: str, error: BaseException) -> UpstreamError:
    """The UpstreamError for one of WIRE_ERRORS; its text contains nothing of that error's text."""
    if isinstance(error, TimeoutError):
        return _timeout(upstream, host, error)
    if isinstance(error, aiohttp.ClientPayloadError):
        message = f"{host} ended its response before it was complete"
        return UpstreamFailed(upstream, message, reason="truncated")
    if isinstance(error, aiohttp.ClientHttpProxyError):
        message = f"its proxy returned {error.status} instead of opening a connection to {host}"
        return UpstreamUnreachable(upstream, message, reason="proxy")
    if isinstance(error, aiohttp.InvalidURL | UnicodeError):
        return UpstreamFailed(upstream, "named a URL that cannot be requested", reason="redirect")
    if isinstance(error, aiohttp.ClientResponseError):
        return UpstreamFailed(upstream, f"{host} does not speak HTTP", reason="protocol")
    reason = _reason(error)
    remedy = _NO_NAME_SERVER if _is_unanswered(error) else _REMEDIES[reason]
    return UpstreamUnreachable(upstream, f"{host} {remedy}", reason=reason)


def _timeout(upstream: str, host: str, error: TimeoutError) -> UpstreamError:
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        message = f"{host} accepted no connection within connect_timeout"
        return UpstreamTimeout(upstream, message, reason="connect")
    return UpstreamTimeout(upstream, f"{host} sent no response within read_timeout", reason="read")


def _reason(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientConnectorDNSError | socket.gaierror):
        return "dns"
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return "proxy"
    if isinstance(error, aiohttp.ClientConnectorCertificateError | ssl.CertificateError):
        return "certificate"
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return "tls"
    if isinstance(error, aiohttp.ClientConnectorError):
        return _socket_reason(error.os_error)
    return "reset"


def _is_unanswered(error: BaseException) -> bool:
    """Whether the name servers failed, so that the name itself may exist."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorDNSError) else error
    return isinstance(cause, OSError) and cause.errno == socket.EAI_AGAIN


def _socket_reason(error: OSError) -> str:
    # With several addresses the errors come as one, whose number may be missing.
    if error.errno == errno.ECONNREFUSED or f"Errno {errno.ECONNREFUSED}]" in str(error):
        return "refused"
    if error.errno in (errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED):
        return "reset"
    return "network"


def error_for_status(
    upstream: str, host: str, status: int, headers: Mapping[str, str], what: str
) -> UpstreamError:
    """The error for a response with an unexpected ``status``; ``what`` names the requested content."""
    if status == 404:
        return UpstreamNotFound(upstream, f"has no {what}", reason="not-found")
    if status in (401, 403):
        message = f"denies access to {what} ({status}); check the credentials configured for it"
        return UpstreamDenied(upstream, message, reason="denied")
    if status == 429:
        wait = retry_after(headers.get("Retry-After", ""))
        message = f"limits the rate of requests ({host}); the next one is allowed in {wait:.0f} s"
        return UpstreamRateLimited(upstream, message, reason="rate-limit", retry_after=wait)
    message = f"{host} returned {status} for {what}"
    return UpstreamFailed(upstream, message, reason=f"status-{status}")


def retry_after(text: str, now: datetime | None = None) -> float:
    """Seconds to wait by ``Retry-After`` (RFC 9110 section 10.2.3): a number or a date.

    Malformed or absent values count as a minute; the longest wait is an hour.
    """
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(min(int(text[:10]), RETRY_AFTER_MAX))
    try:
        until = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return RETRY_AFTER_DEFAULT
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    seconds = (until - (now or datetime.now(UTC))).total_seconds()
    return min(max(seconds, 0.0), RETRY_AFTER_MAX)
