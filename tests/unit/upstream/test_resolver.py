"""DNS lookups of one upstream."""

import socket

import pytest

from regmirror.upstream.resolver import DnsResolver, look_up


async def test_a_literal_address_is_its_own_result() -> None:
    dns = DnsResolver()
    try:
        (found,) = await dns.resolve("127.0.0.1", 443)
    finally:
        await dns.close()
    assert (found["hostname"], found["host"], found["port"]) == ("127.0.0.1", "127.0.0.1", 443)


async def test_an_unknown_name_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """B38."""

    def fail(*args: object, **options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    dns = DnsResolver()
    try:
        with pytest.raises(socket.gaierror):
            await dns.resolve("nowhere.test")
    finally:
        await dns.close()


def test_a_link_local_address_keeps_its_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    address = ("fe80::1", 443, 0, 1)
    entry = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", address)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: [entry])
    ((family, protocol, text),) = look_up("host.test", 443, socket.AF_INET6)
    assert (family, protocol) == (socket.AF_INET6, 6)
    assert text.startswith("fe80::1%")
