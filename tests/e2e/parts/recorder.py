"""A reverse proxy that records every request and can inject faults or stop.

It records requests in front of an upstream, or in the place of Docker Hub.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from tests.e2e.parts.process import LOOPBACK

PIECE = 64 * 1024
# These describe one connection, not the content (RFC 9110 §7.6.1); `Date` and `Server` are our own.
UNRELAYED = frozenset({"connection", "keep-alive", "transfer-encoding", "date", "server"})
BLOB = re.compile(r"/blobs/(sha256:[0-9a-f]{64})")


@dataclass(frozen=True)
class RecordedRequest:
    """One request as it arrived; `target` is the raw path with its query."""

    method: str
    target: str
    status: int

    def blob(self) -> str:
        """Return the digest if this is the GET of a blob, else nothing."""
        match = BLOB.search(self.target)
        return match[1] if match and self.method == "GET" else ""

    def __str__(self) -> str:
        return f"{self.method} {self.target} -> {self.status}"


@dataclass(frozen=True)
class Fault:
    """A fault for requests whose `METHOD target` matches: a delay, then an error status."""

    pattern: str
    status: int = 0
    delay: float = 0

    def applies_to(self, line: str) -> bool:
        """Return whether this fault applies to the request."""
        return re.search(self.pattern, line) is not None


class Recorder:
    """The proxy in threads of this process; `requests` are those received so far."""

    def __init__(
        self, target: str, *, address: tuple[str, int] = (LOOPBACK, 0), tls: ssl.SSLContext | None = None
    ) -> None:
        self.target = urlsplit(target).netloc
        self.requests: list[RecordedRequest] = []
        self.faults: list[Fault] = []
        self._address = address
        self._tls = tls
        self._listen()

    @property
    def url(self) -> str:
        """Return the address clients use."""
        scheme = "https" if self._tls else "http"
        return f"{scheme}://{self._address[0]}:{self._address[1]}"

    @property
    def host(self) -> str:
        """Return address and port."""
        return f"{self._address[0]}:{self._address[1]}"

    def blob_gets(self) -> list[str]:
        """Return the digest of each blob GET, one entry for each request."""
        return [digest for request in self.requests if (digest := request.blob())]

    def blobs_sent(self) -> list[str]:
        """Return the digest of each blob GET whose response had content."""
        return [digest for request in self.with_content() if (digest := request.blob())]

    def with_content(self) -> list[RecordedRequest]:
        """Return the requests whose responses had content."""
        return [
            request for request in self.requests if 200 <= request.status < 300 and request.target != "/v2/"
        ]

    @contextmanager
    def down(self) -> Iterator[None]:
        """Stop for a while: close the listening socket and all open connections."""
        self.stop()
        try:
            yield
        finally:
            self._listen()

    def stop(self) -> None:
        """Close the port and every connection."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
        self._server.cut_connections()

    def _listen(self) -> None:
        self._server = _Server(self, self._address, self._tls)
        # A port of 0 has become a real one, which stays the same after `down`.
        self._address = (self._address[0], self._server.server_port)
        serve = self._server.serve_forever
        self._thread = threading.Thread(target=serve, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()


class _Server(ThreadingHTTPServer):
    """A threading server with optional TLS that can close all its open connections."""

    daemon_threads = True

    def __init__(self, recorder: Recorder, address: tuple[str, int], tls: ssl.SSLContext | None) -> None:
        self.recorder = recorder
        self._tls = tls
        self._connections: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def get_request(self) -> tuple[socket.socket, object]:
        connection, peer = super().get_request()
        if self._tls:
            # The handshake comes with the first read, in the connection's own thread.
            connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        self._connections.add(connection)
        return connection, peer

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        self._connections.discard(request)
        super().shutdown_request(request)

    def cut_connections(self) -> None:
        """Close all open connections; their threads end by themselves."""
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore errors of connections that clients close; tests check `requests`."""


class _Handler(BaseHTTPRequestHandler):
    """Relays one request after the other of a connection."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        line = f"{self.command} {self.path}"
        fault = next((each for each in self.server.recorder.faults if each.applies_to(line)), Fault(""))
        time.sleep(fault.delay)
        if fault.status:
            self._refuse(fault.status)
        else:
            self._relay()

    do_HEAD = do_GET

    def _remember(self, status: int) -> None:
        self.server.recorder.requests.append(RecordedRequest(self.command, self.path, status))

    def _refuse(self, status: int) -> None:
        self._remember(status)
        body = b'{"errors":[{"code":"UNKNOWN","message":"made by a test"}]}'
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _relay(self) -> None:
        upstream = http.client.HTTPConnection(self.server.recorder.target, timeout=30)
        try:
            self._ask(upstream)
            self._pass_on(upstream.getresponse())
        finally:
            upstream.close()

    def _ask(self, upstream: http.client.HTTPConnection) -> None:
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in UNRELAYED:
                upstream.putheader(name, value)
        upstream.endheaders()

    def _pass_on(self, response: http.client.HTTPResponse) -> None:
        self._remember(response.status)
        self.send_response(response.status)
        for name, value in response.getheaders():
            if name.lower() not in UNRELAYED:
                self.send_header(name, value)
        if response.getheader("Content-Length") is None:
            self.send_header("Connection", "close")
        self.end_headers()
        while piece := response.read(PIECE):
            self.wfile.write(piece)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        """Keep the output of the tests clean."""
