"""The token server of a registry like Docker Hub: permissions, and a count of the token requests."""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.e2e.parts.process import LOOPBACK

SERVICE = "registry.example.test"
ISSUER = "tests"
USER = "alice"
PASSWORD = "correct horse"
LIFETIME = 300
Access = list[dict[str, Any]]


class TokenServer:
    """Signs tokens that docker-registry accepts.

    Anybody pulls what is outside of `private/`, USER with PASSWORD everything; a wrong password is 401.
    """

    def __init__(self, directory: Path, tls: ssl.SSLContext | None) -> None:
        authority = trustme.CA()
        signer = authority.issue_cert("token.example.test")
        self.bundle = directory / "token-ca.pem"
        authority.cert_pem.write_to_path(self.bundle)
        self._key = signer.private_key_pem.bytes()
        certificate = x509.load_pem_x509_certificate(signer.cert_chain_pems[0].bytes())
        self._chain = [base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()]
        self.requests: list[str] = []
        self._server = _Server(self, tls)
        serve = self._server.serve_forever
        self._thread = threading.Thread(target=serve, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    @property
    def realm(self) -> str:
        """Return the address that the registry's challenge names."""
        scheme = "https" if self._server.tls else "http"
        return f"{scheme}://{LOOPBACK}:{self._server.server_port}/token"

    def issue(self, access: Access) -> str:
        """Sign a token for exactly this access."""
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "sub": "",
            "aud": SERVICE,
            "exp": now + LIFETIME,
            "nbf": now - 5,
            "iat": now,
            "jti": uuid.uuid4().hex,
            "access": access,
        }
        return jwt.encode(claims, self._key, algorithm="ES256", headers={"x5c": self._chain})

    def respond(self, target: str, authorization: str) -> tuple[int, dict[str, Any]]:
        """Decide one token request: the status and the JSON of the response."""
        self.requests.append(target)
        if authorization and authorization != basic(USER, PASSWORD):
            return 401, {"details": "incorrect username or password"}
        scopes = parse_qs(urlsplit(target).query).get("scope", [])
        access = [grant(scope, is_known=bool(authorization)) for each in scopes for scope in each.split()]
        token = self.issue(access)
        return 200, {"token": token, "access_token": token, "expires_in": LIFETIME}

    def stop(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


def basic(user: str, password: str) -> str:
    """Return the value of an Authorization header."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def grant(scope: str, *, is_known: bool) -> dict[str, Any]:
    """Turn `repository:NAME:pull,push` into the scope that is granted."""
    kind, name, _ = scope.split(":", 2)
    may_pull = is_known or not name.startswith("private/")
    return {"type": kind, "name": name, "actions": ["pull"] if may_pull else []}


class _Server(ThreadingHTTPServer):
    def __init__(self, tokens: TokenServer, tls: ssl.SSLContext | None) -> None:
        self.tokens = tokens
        self.tls = tls
        super().__init__((LOOPBACK, 0), _Handler)
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        status, document = self.server.tokens.respond(self.path, self.headers.get("Authorization", ""))
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        """Keep the output of the tests clean; `requests` remembers."""
