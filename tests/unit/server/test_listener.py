"""Listening sockets, and a certificate that is renewed in place."""

import asyncio
import socket
from pathlib import Path

import pytest
import trustme

from regmirror.config.schema import Config, Tls
from regmirror.errors import ConfigError
from regmirror.server import listener
from regmirror.server.listener import Certificate, bind, load_tls, url_of


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    tls = Tls(certificate=str(tmp_path / "cert.pem"), key=str(tmp_path / "key.pem"))
    write(tls)
    return tls


def write(tls: Tls) -> None:
    issued = trustme.CA().issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tls.key)
    issued.cert_chain_pems[0].write_to_path(tls.certificate)


@pytest.mark.parametrize("count", [1, 3])
def test_sockets_listen_on_one_port(count: int) -> None:
    sockets = bind("127.0.0.1:0", count)
    assert len({sock.getsockname() for sock in sockets}) == 1
    assert len(sockets) == count
    socket.create_connection(sockets[0].getsockname()).close()
    for sock in sockets:
        assert not sock.getblocking()
        sock.close()


@pytest.mark.parametrize("count", [1, 2])
def test_a_port_in_use_is_an_error(count: int) -> None:
    """Also if the other program shares the port."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ConfigError, match=r"address already in use; choose another with --listen"):
            bind(f"127.0.0.1:{other.getsockname()[1]}", count)


def test_a_url_has_the_scheme_and_the_address() -> None:
    [sock] = bind("127.0.0.1:0", 1)
    port = sock.getsockname()[1]
    assert url_of(sock, is_secure=False) == f"http://127.0.0.1:{port}"
    assert url_of(sock, is_secure=True) == f"https://127.0.0.1:{port}"
    sock.close()


def test_a_url_has_ipv6_in_brackets() -> None:
    try:
        [sock] = bind("[::1]:0", 1)
    except ConfigError:
        pytest.skip("no IPv6 here")
    assert url_of(sock, is_secure=False).startswith("http://[::1]:")
    sock.close()


def test_without_a_certificate_there_is_no_context() -> None:
    assert load_tls(Tls()) is None
    assert Certificate.load(Config()) is None


def test_a_key_of_another_certificate_is_an_error(tls: Tls) -> None:
    trustme.CA().issue_cert("127.0.0.1").private_key_pem.write_to_path(tls.key)
    with pytest.raises(ConfigError, match="the key belongs to another certificate"):
        load_tls(tls)


def test_a_file_without_a_certificate_is_an_error(tls: Tls) -> None:
    Path(tls.certificate).write_text("nothing")
    with pytest.raises(ConfigError, match="without pass phrase"):
        load_tls(tls)


async def test_replaced_files_are_loaded_and_invalid_ones_ignored(
    tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "POLL", 0.01)
    config = Config.model_validate({"server": {"tls": tls.model_dump()}})
    certificate = Certificate.load(config)
    assert certificate is not None
    context, loaded = certificate.context, []
    monkeypatch.setattr(listener, "_load_into", lambda target, tls: loaded.append(target is context))
    watching = asyncio.create_task(certificate.watch())
    await asyncio.sleep(0.05)
    assert loaded == []
    write(tls)
    async with asyncio.timeout(5):
        while not any(loaded):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert certificate.context is context
    Path(tls.certificate).unlink()
    await asyncio.sleep(0.05)
    assert not watching.done()
    watching.cancel()
