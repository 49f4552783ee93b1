"""TLS sessions: a client that comes back is spared the costly part, whichever worker it meets."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.fake_registry import FakeRegistry
from tests.mirror_fixture import NAME, run_program

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_session_is_resumed_by_every_worker(
    upstream: FakeRegistry, storage: Path, version: Any
) -> None:
    """B76: the context, with the keys of its tickets, is older than the workers."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    chain, key = storage.parent / "chain.pem", storage.parent / "key.pem"
    certificate.private_key_pem.write_to_path(key)
    certificate.cert_chain_pems[0].write_to_path(chain)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    client.minimum_version = client.maximum_version = version

    def ask(session: Any) -> Any:
        with (
            socket.create_connection(("127.0.0.1", port), 10) as plain,
            client.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as secure,
        ):
            secure.sendall(b"GET /healthz HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n")
            while secure.recv(4096):  # the tickets of TLS 1.3 come with the response
                pass
            return secure.session, secure.session_reused

    tls = {"certificate": str(chain), "key": str(key)}
    async with run_program(storage, {NAME: upstream}, workers=2, server={"tls": tls}) as program:
        port = program.port
        session, is_resumed = await asyncio.to_thread(ask, None)
        assert not is_resumed
        assert [(await asyncio.to_thread(ask, session))[1] for _ in range(16)] == [True] * 16
