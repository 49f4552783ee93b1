"""The listening sockets and the certificate of a server."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Final

from regmirror.config.schema import Config, Tls, split_address
from regmirror.errors import ConfigError

BACKLOG: Final = 1024  # connections that wait to be accepted
POLL: Final = 10.0  # seconds between two checks of the certificate's files
_TLS_REASONS: Final = {"KEY_VALUES_MISMATCH": "the key belongs to another certificate"}


def bind(listen: str, count: int) -> list[socket.socket]:
    """``count`` listening sockets on one port; raises ConfigError if the port is in use."""
    host, port = split_address(listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    probe = _bind_one(listen, family, host, port, shared=False)
    if count == 1:
        return [probe]
    # Another program could use the port by SO_REUSEPORT: binding without it fails then.
    port = probe.getsockname()[1]
    probe.close()
    return [_bind_one(listen, family, host, port, shared=True) for _ in range(count)]


def _bind_one(
    listen: str, family: socket.AddressFamily, host: str, port: int, *, shared: bool
) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        reason = f"{(error.strerror or str(error)).lower()}; choose another with --listen"
        raise ConfigError("server.listen", listen, reason) from None
    sock.setblocking(False)
    return sock


def url_of(sock: socket.socket, *, is_secure: bool) -> str:
    """The URL under which clients reach the socket."""
    host, port = sock.getsockname()[:2]
    written = f"[{host}]" if ":" in host else host
    return f"{'https' if is_secure else 'http'}://{written}:{port}"


def load_tls(tls: Tls) -> ssl.SSLContext | None:
    """The server's TLS context, or None for plain HTTP; raises ConfigError."""
    if not tls.certificate:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        _load_into(context, tls)
    except (OSError, ssl.SSLError) as error:
        hint = _TLS_REASONS.get(getattr(error, "reason", None) or "", "is it PEM, without pass phrase?")
        reason = f"does not load with the key {tls.key}; {hint}"
        raise ConfigError("server.tls.certificate", tls.certificate, reason) from None
    return context


def _load_into(context: ssl.SSLContext, tls: Tls) -> None:
    # An empty pass phrase, so that OpenSSL does not read one from the terminal.
    context.load_cert_chain(tls.certificate, tls.key, password="")


class Certificate:
    """The certificate of a server. Its renewal changes ``context`` in place."""

    def __init__(self, context: ssl.SSLContext, tls: Tls, seen: list[int]) -> None:
        self.context, self._tls, self._seen = context, tls, seen

    @classmethod
    def load(cls, config: Config) -> Certificate | None:
        """The configured certificate, or None for plain HTTP; raises ConfigError."""
        tls = config.server.tls
        seen = _stamps(tls)
        context = load_tls(tls)
        return None if context is None else cls(context, tls, seen)

    def renew(self, tls: Tls) -> None:
        """Use the current content of the files of ``tls`` for new connections.

        Raises ConfigError, and then nothing has changed.
        """
        seen = _stamps(tls)
        load_tls(tls)  # checked first: a failed load would leave ``context`` without a key
        with suppress(OSError, ssl.SSLError):  # replaced since the check: the next poll loads them
            _load_into(self.context, tls)
            self._tls, self._seen = tls, seen

    async def watch(self) -> None:
        """Renew the certificate whenever its files change, until cancelled; ignore invalid files."""
        while True:
            if _stamps(self._tls) != self._seen:
                with suppress(ConfigError):
                    self.renew(self._tls)
            await asyncio.sleep(POLL)


def _stamps(tls: Tls) -> list[int]:
    """The modification times of the files; empty if one of them does not exist."""
    try:
        return [Path(path).stat().st_mtime_ns for path in (tls.certificate, tls.key)]
    except OSError:
        return []
