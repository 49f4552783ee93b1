"""The acceptor of a socket, and what it does when descriptors run out."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
from collections.abc import AsyncIterator
from unittest.mock import Mock

import pytest

from regmirror.server import acceptor
from regmirror.server.acceptor import Acceptor, raise_descriptor_limit
from regmirror.server.listener import bind
from tests.mirror_fixture import wait_until


class Setup:
    """An acceptor, the connections that it made, and what it asked for."""

    def __init__(self) -> None:
        [self.sock] = bind("127.0.0.1:0", 1)
        self.address = self.sock.getsockname()
        self.protocols: list[Mock] = []
        self.close_idle, self.drop_reader = Mock(return_value=False), Mock(return_value=False)

    def start(self, sock: socket.socket | None = None) -> Acceptor:
        return Acceptor(
            sock or self.sock, None, self.connect, close_idle=self.close_idle, drop_reader=self.drop_reader
        )

    def connect(self) -> asyncio.BaseProtocol:
        self.protocols.append(Mock(spec=asyncio.Protocol))
        return self.protocols[-1]


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    setup = Setup()
    yield setup
    for protocol in setup.protocols:
        await wait_until(lambda protocol=protocol: protocol.connection_made.called, "it has a transport")  # type: ignore[misc]
        protocol.connection_made.call_args.args[0].abort()
    await asyncio.sleep(0)
    setup.sock.close()


async def test_connections_are_accepted_until_it_stops(setup: Setup) -> None:
    started = setup.start()
    _, writer = await asyncio.open_connection(*setup.address)
    await wait_until(lambda: len(setup.protocols) == 1, "the connection is accepted")
    started.stop()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*setup.address)
    writer.close()


async def test_a_full_process_closes_new_connections_and_logs_once(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(acceptor, "DESCRIPTORS_MAX", 0)
    started = setup.start()
    for _ in range(3):
        reader, writer = await asyncio.open_connection(*setup.address)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
    started.stop()
    assert setup.protocols == []
    assert setup.drop_reader.call_count == setup.close_idle.call_count == 3
    assert capsys.readouterr().out.count("connections rejected") == 1


@pytest.mark.parametrize("name", ["close_idle", "drop_reader"])
async def test_a_full_process_makes_room(setup: Setup, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(acceptor, "DESCRIPTORS_MAX", 0)
    getattr(setup, name).return_value = True
    started = setup.start()
    _, writer = await asyncio.open_connection(*setup.address)
    await wait_until(lambda: len(setup.protocols) == 1, "the connection is accepted")
    assert setup.drop_reader.called == (name == "drop_reader")
    started.stop()
    writer.close()


async def test_without_descriptors_it_pauses_and_continues(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(acceptor, "PAUSE", 0.05)
    failing = Mock(wraps=setup.sock, fileno=setup.sock.fileno)
    errors = [OSError(errno.EMFILE, "too many open files")]

    def accept() -> tuple[socket.socket, object]:
        if errors:
            raise errors.pop()
        return setup.sock.accept()

    failing.accept.side_effect = accept
    started = setup.start(failing)
    _, writer = await asyncio.open_connection(*setup.address)
    await wait_until(lambda: len(setup.protocols) == 1, "it accepts again")
    assert setup.close_idle.call_count == 1
    assert "too many open files" in capsys.readouterr().out
    started.stop()
    writer.close()


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, before[0]), before[1]))
    try:
        raise_descriptor_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
