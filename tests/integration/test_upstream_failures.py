"""Upstreams that cannot be reached, do not answer, or answer in no way that makes sense."""

import asyncio
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest
import trustme

from regmirror.errors import (
    UpstreamDenied,
    UpstreamFailed,
    UpstreamNotFound,
    UpstreamRateLimited,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from regmirror.oci.names import Digest
from regmirror.telemetry.events import UpstreamRequestEnded
from regmirror.upstream.receive_buffers import POOL
from tests.fake_registry import DropBeforeResponse, FakeRegistry, FakeStorage, Redirect, random_bytes
from tests.integration.asking import (
    ALPINE,
    LATEST,
    NAME,
    NOTHING,
    RecordingClient,
    asking,
    never,
    saying,
    speaking,
)

LAYER = random_bytes(300_000, seed=1)


async def reason_of(client: Any, kind: Any) -> Any:
    """Why a request failed; that is told as well (B38)."""
    with pytest.raises(kind) as caught:
        await client.get_manifest(ALPINE, LATEST)
    assert type(caught.value) is kind
    assert str(caught.value).startswith(f"{NAME}: ")
    (told,) = client.told(UpstreamRequestEnded)
    assert (told.status, told.reason) == (0, caught.value.reason)
    return caught.value.reason


@pytest.fixture(scope="module")
def authority() -> Any:
    return trustme.CA()


@pytest.fixture
def server_context(authority: Any) -> Any:
    """The TLS of a server at 127.0.0.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def ca_file(authority: Any, tmp_path: Path) -> Any:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return str(path)


@pytest.fixture
async def secure(server_context: Any) -> Any:
    """An upstream that speaks https."""
    async with FakeRegistry(ssl_context=server_context) as registry:
        registry.add_image("library/alpine", "latest", [LAYER])
        yield registry


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


# --- no connection ---


async def test_refused(upstream: Any) -> None:
    """B38."""
    await upstream.stop()
    async with asking(upstream.url) as client:
        assert await reason_of(client, UpstreamUnreachable) == "refused"


async def test_a_name_that_cannot_be_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    """B38."""

    def fail(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", fail)
    async with asking("https://registry.invalid") as client:
        assert await reason_of(client, UpstreamUnreachable) == "dns"


async def test_a_name_that_is_none() -> None:
    """B38, B55: a label longer than 63 characters, and an empty one in punycode."""
    for host in (f"{'a' * 64}.example", "xn--"):
        response = f"HTTP/1.1 307 \r\nLocation: http://{host}/x\r\nContent-Length: 0\r\n\r\n"
        async with speaking(saying(response.encode())) as home, asking(f"http://{home}") as client:
            with pytest.raises(UpstreamFailed, match="impossible host or port") as caught:
                await client.get_manifest(ALPINE, LATEST)
        assert caught.value.reason == "redirect"


async def test_an_unknown_authority(secure: Any) -> None:
    """B38."""
    async with asking(secure.url) as client:
        assert await reason_of(client, UpstreamUnreachable) == "certificate"


async def test_https_to_a_port_that_speaks_http(upstream: Any) -> None:
    """B38: the remedy is in the text."""
    async with asking(upstream.url.replace("http:", "https:")) as client:
        assert await reason_of(client, UpstreamUnreachable) == "tls"


async def test_http_to_a_port_that_speaks_https(secure: Any) -> None:
    async with asking(secure.url.replace("https:", "http:")) as client:
        assert await reason_of(client, UpstreamUnreachable) in ("protocol", "reset")


@pytest.mark.parametrize("is_reset", [False, True])
async def test_a_connection_that_breaks_before_the_answer(upstream: Any, is_reset: bool) -> None:
    """B38."""
    upstream.fault(DropBeforeResponse(reset=is_reset), times=None)
    async with asking(upstream.url) as client:
        assert await reason_of(client, UpstreamUnreachable) == "reset"


@pytest.mark.parametrize(
    "response",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 banana\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    ],
)
async def test_an_answer_that_is_not_http_is_a_failure(response: bytes) -> None:
    async with speaking(saying(response)) as host, asking(f"http://{host}") as client:
        with pytest.raises((UpstreamFailed, UpstreamUnreachable)):
            await client.get_manifest(ALPINE, LATEST)


# --- no answer in time ---


async def test_an_upstream_that_says_nothing_is_given_up(upstream: Any) -> None:
    """B35: headers."""
    gate = upstream.hold()
    async with asking(upstream.url, read_timeout="50ms") as client:
        assert await reason_of(client, UpstreamTimeout) == "read"
    gate.release()


async def test_a_handshake_that_never_ends_is_given_up() -> None:
    """B35: connecting includes TLS."""
    async with speaking(never) as host, asking(f"https://{host}", connect_timeout="50ms") as client:
        assert await reason_of(client, UpstreamTimeout) == "connect"


async def test_a_name_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """B35: connecting includes the name, and nobody else waits for that name server."""
    answered = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: answered.wait(10) and [])
    clients = [RecordingClient.at("https://registry.invalid", connect_timeout="50ms") for _ in range(20)]
    try:
        reasons = await asyncio.gather(*(reason_of(client, UpstreamTimeout) for client in clients))
        assert reasons == ["connect"] * 20
        async with asyncio.timeout(1):
            assert await asyncio.to_thread(lambda: "free") == "free"
    finally:
        answered.set()
        await asyncio.gather(*(client.close() for client in clients))


async def test_a_body_that_stops_is_given_up(upstream: Any) -> None:
    """B35: idle."""
    digest = upstream.add_blob("library/alpine", LAYER)
    pause = upstream.pause(after=1000)
    received = bytearray()
    async with asking(upstream.url, read_timeout="100ms") as client:
        with pytest.raises(UpstreamTimeout) as caught:
            await client.fetch(digest, into=received)
    assert caught.value.reason == "read"
    assert received == LAYER[:1000]
    pause.release()


@pytest.mark.parametrize("start", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n"])
async def test_an_answer_that_trickles_is_given_up(start: bytes) -> None:
    """B35: a byte now and then is no answer, in the headers as in a short body."""

    async def trickle(reader: Any, writer: Any) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(start)
        while not writer.is_closing():
            writer.write(b"x")
            await asyncio.sleep(0.005)

    options = {"read_timeout": "50ms", "connect_timeout": "50ms"}
    async with speaking(trickle) as host, asking(f"http://{host}", **options) as client:
        with pytest.raises(UpstreamTimeout) as caught:
            await client.get_manifest(ALPINE, LATEST)
        assert caught.value.reason == "read"


SLOW = {"read_timeout": "50ms", "connect_timeout": "50ms"}
REALM = 'WWW-Authenticate: Bearer realm="http://{host}/token",service="s"\r\n'


def trickling(start: Any, paths: Any = ("",)) -> Any:
    """A server that answers these paths with ``start``, and then a byte now and then without an end;
    every other request with 401.
    """

    async def trickle(reader: Any, writer: Any) -> None:
        while request := await reader.readuntil(b"\r\n\r\n"):
            host = f"127.0.0.1:{writer.get_extra_info('sockname')[1]}"
            if any(path in request.decode() for path in paths):
                break
            writer.write(f"HTTP/1.1 401 \r\n{REALM.format(host=host)}Content-Length: 0\r\n\r\n".encode())
        writer.write(start.format(host=host).encode())
        while not writer.is_closing():
            writer.write(b"1\r\nx\r\n" if "chunked" in start else b"x")
            await asyncio.sleep(0.005)

    return speaking(trickle)


@pytest.mark.parametrize("framing", ["Content-Length: 99999", "Transfer-Encoding: chunked", "X: y"])
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("404", UpstreamNotFound),
        ("403", UpstreamDenied),
        ("500", UpstreamFailed),
        ("429", UpstreamRateLimited),
    ],
)
async def test_an_error_whose_body_trickles_is_the_error(status: str, kind: Any, framing: str) -> None:
    """B35, B100: nobody waits for the end of a body that nobody wants."""
    start = f"HTTP/1.1 {status} \r\n{framing}\r\n\r\n"
    async with trickling(start) as host, asking(f"http://{host}", **SLOW) as client:
        async with asyncio.timeout(10):
            with pytest.raises(kind):
                await client.get_manifest(ALPINE, LATEST)


async def test_a_redirect_whose_body_trickles_is_followed(upstream: Any) -> None:
    """B35, B55."""
    image = upstream.add_image("library/alpine", "latest", [LAYER])
    path = "/v2/library/alpine/manifests/latest"
    start = f"HTTP/1.1 307 \r\nLocation: {upstream.url}{path}\r\nContent-Length: 99999\r\n\r\n"
    async with trickling(start) as host, asking(f"http://{host}", **SLOW) as client, asyncio.timeout(10):
        assert (await client.get_manifest(ALPINE, LATEST)).payload == image.manifest


@pytest.mark.parametrize("start", ["HTTP/1.1 200 \r\n\r\n", "HTTP/1.1 200 \r\nX: ", "HTTP/1.1 401 \r\n\r\n"])
async def test_a_token_that_trickles_is_given_up(start: str) -> None:
    """B35, B100: the body of a token endpoint, and its headers."""
    async with trickling(start, paths=("/token",)) as host, asking(f"http://{host}", **SLOW) as client:
        async with asyncio.timeout(10):
            with pytest.raises(UpstreamTimeout):
                await client.get_manifest(ALPINE, LATEST)


@pytest.mark.parametrize("framing", ["Content-Length: 9999999", "Transfer-Encoding: chunked", "X: y"])
async def test_a_blob_that_trickles_is_given_up(framing: str) -> None:
    """B35, B100: each byte satisfies the idle timeout."""
    start = f"HTTP/1.1 200 \r\n{framing}\r\n\r\n"
    received = bytearray()
    async with trickling(start) as host, asking(f"http://{host}", **SLOW) as client, asyncio.timeout(10):
        with pytest.raises(UpstreamTimeout, match="too slowly"):
            await client.fetch(NOTHING, into=received)
    assert set(received) == {ord("x")}


async def test_empty_framing_is_no_part_of_a_body() -> None:
    """B35, B100: a chunk extension without an end keeps a connection busy and brings nothing."""

    async def extend(reader: Any, writer: Any) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n1;")
        while not writer.is_closing():
            writer.write(b"x")
            await asyncio.sleep(0.005)

    async with speaking(extend) as host, asking(f"http://{host}", **SLOW) as client, asyncio.timeout(10):
        with pytest.raises(UpstreamTimeout):
            await client.fetch(NOTHING)


async def an_idle_upstream_is_given_up(read_timeout: Any) -> None:
    """Takes as long as that timeout, by the clock of whoever is responsible for it."""
    async with speaking(never) as host, asking(f"http://{host}", read_timeout=read_timeout) as client:
        with pytest.raises(UpstreamTimeout):
            await client.get_manifest(ALPINE, LATEST)


async def test_a_slow_reader_is_no_idle_upstream(upstream: Any) -> None:
    """B17: while nobody reads, the upstream's silence is our own doing."""
    digest = upstream.add_big_blob("library/alpine", 8_000_000)
    async with (
        asking(upstream.url, read_timeout="50ms") as client,
        client.open_blob(ALPINE, Digest(digest)) as body,
    ):
        size = len(await body.read())
        await an_idle_upstream_is_given_up("100ms")
        while chunk := await body.read():
            size += len(chunk)
    assert size == 8_000_000


# --- many at once ---


async def test_manifests_do_not_queue_behind_blobs(upstream: Any) -> None:
    """B35: max_connections is reached by blobs, and a manifest still comes."""
    upstream.add_image("library/alpine", "latest")
    blobs = [Digest(upstream.add_blob("library/alpine", LAYER + bytes([n]))) for n in range(4)]
    pause = upstream.pause(after=1000)
    async with asking(upstream.url, max_connections=3) as client:
        fetches = [asyncio.ensure_future(client.fetch(digest)) for digest in blobs]
        await upstream.wait_for_requests("blob", count=2)
        await client.get_manifest(ALPINE, LATEST)
        assert upstream.count("blob") == 2
        assert upstream.connections == 3
        pause.release()
        assert len(await asyncio.gather(*fetches)) == 4


async def test_waiting_for_a_connection_is_no_timeout(upstream: Any) -> None:
    """B35: a long queue is not the upstream's fault."""
    blobs = [Digest(upstream.add_blob("library/alpine", LAYER + bytes([n]))) for n in range(2)]
    pause = upstream.pause(after=1000, times=1)
    options = {"max_connections": 1, "connect_timeout": "50ms", "read_timeout": "5s"}
    async with asking(upstream.url, **options) as client:
        first = asyncio.ensure_future(client.fetch(blobs[0]))
        await pause.wait_for_arrivals()
        second = asyncio.ensure_future(client.fetch(blobs[1]))
        await an_idle_upstream_is_given_up("100ms")
        assert not second.done()
        pause.release()
        assert await first == LAYER + b"\0"
        assert await second == LAYER + b"\1"


async def test_who_is_cancelled_leaves_nothing_behind(upstream: Any) -> None:
    """B17: no connection and no slot."""
    upstream.add_image("library/alpine", "latest")
    gate = upstream.hold(times=5)
    async with asking(upstream.url, max_connections=1) as client:
        for number in range(5):
            work = asyncio.ensure_future(client.get_manifest(ALPINE, LATEST))
            await upstream.wait_for_requests("manifest", count=number + 1)
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
        gate.release()
        assert (await client.get_manifest(ALPINE, LATEST)).payload


async def test_a_client_that_is_closed_asks_nobody(upstream: Any) -> None:
    async with asking(upstream.url) as client:
        pass
    with pytest.raises(UpstreamUnreachable) as caught:
        await client.get_manifest(ALPINE, LATEST)
    assert caught.value.reason == "closed"
    assert upstream.connections == 0


# --- TLS and proxies ---


async def test_an_authority_of_our_own_is_trusted(secure: Any, ca_file: Any) -> None:
    """B63."""
    async with asking(secure.url, ca_file=ca_file) as client:
        assert (await client.get_manifest(ALPINE, LATEST)).payload


@pytest.mark.parametrize("is_left", [True, False])
async def test_an_encrypted_download_gives_its_memory_back(secure: Any, ca_file: Any, is_left: bool) -> None:
    """B18, B100: at its end, and when it is broken off."""
    content = random_bytes(12_000_000)
    digest = secure.add_blob("library/alpine", content)
    async with asking(secure.url, ca_file=ca_file) as client:
        async with client.open_blob(ALPINE, Digest(digest)) as body:
            received = bytes(await body.read())
            assert await body.splice(never_called) is None
            assert POOL.borrowed > 0
            while not is_left and (piece := await body.read()):
                received += piece
        assert content[: len(received)] == received
        assert is_left or len(received) == len(content)
        assert POOL.borrowed == 0


async def never_called(descriptor: Any, count: Any) -> None:
    raise AssertionError("what is encrypted cannot be moved by the kernel")


async def test_insecure_takes_any_certificate(secure: Any) -> None:
    """B63."""
    async with asking(secure.url, insecure=True) as client:
        assert (await client.get_manifest(ALPINE, LATEST)).payload


async def test_a_client_certificate_is_shown(
    secure: Any, server_context: Any, authority: Any, ca_file: Any, tmp_path: Path
) -> None:
    """B63."""
    server_context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(server_context)
    issued = authority.issue_cert("mirror.example")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "client.pem")
    issued.private_key_pem.write_to_path(tmp_path / "client.key")
    async with asking(secure.url, ca_file=ca_file) as client:
        with pytest.raises(UpstreamUnreachable):
            await client.get_manifest(ALPINE, LATEST)
    shown = {
        "client_certificate": str(tmp_path / "client.pem"),
        "client_key": str(tmp_path / "client.key"),
    }
    async with asking(secure.url, ca_file=ca_file, **shown) as client:
        assert (await client.get_manifest(ALPINE, LATEST)).payload


async def test_a_redirect_from_https_to_http_is_refused(secure: Any, upstream: Any, ca_file: Any) -> None:
    """B55."""
    secure.fault(Redirect(f"{upstream.url}/v2/x"), times=None)
    async with asking(secure.url, ca_file=ca_file) as client:
        with pytest.raises(UpstreamFailed, match="plain HTTP after HTTPS"):
            await client.get_manifest(ALPINE, LATEST)
    assert upstream.connections == 0


async def test_an_http_realm_of_an_https_upstream_is_upgraded(secure: Any, ca_file: Any) -> None:
    """B60, B61: on its own host and port."""
    secure.auth = "bearer"
    secure.realm = f"http://127.0.0.1:{secure.port}/token"
    async with asking(secure.url, ca_file=ca_file) as client:
        assert (await client.get_manifest(ALPINE, LATEST)).payload
    assert secure.count("token") == 1


async def test_a_proxy_is_asked_in_place_of_the_upstream(upstream: Any) -> None:
    """B63: by plain http it reads the request, password of its own included."""
    image = upstream.add_image("library/alpine", "latest")
    proxy = upstream.url.replace("http://", "http://p:pr0xy@")
    async with asking("http://registry.example", http_proxy=proxy) as client:
        assert (await client.get_manifest(ALPINE, LATEST)).digest == image.digest
    request = upstream.requests[0]
    assert request.headers["Host"] == "registry.example"
    assert request.headers["Proxy-Authorization"] == "Basic cDpwcjB4eQ=="


async def test_the_proxy_of_the_environment_is_asked(upstream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """B63: HTTP_PROXY, and NO_PROXY around it."""
    image = upstream.add_image("library/alpine", "latest")
    monkeypatch.setenv("http_proxy", upstream.url)
    async with asking("http://registry.example") as client:
        assert (await client.get_manifest(ALPINE, LATEST)).digest == image.digest
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.0/8")
    async with asking(upstream.url) as client:
        assert (await client.get_manifest(ALPINE, LATEST)).digest == image.digest


async def test_a_proxy_that_cannot_be_reached_is_told_apart(upstream: Any) -> None:
    """B38."""
    await upstream.stop()
    async with asking("https://registry.example", http_proxy=upstream.url) as client:
        assert await reason_of(client, UpstreamUnreachable) == "proxy"


async def test_a_proxy_that_refuses_is_told_apart() -> None:
    """B38."""
    refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
    async with (
        speaking(saying(refusal)) as host,
        asking("https://registry.example", http_proxy=f"http://{host}") as client,
    ):
        assert await reason_of(client, UpstreamUnreachable) == "proxy"


async def test_the_password_of_a_proxy_shows_nowhere() -> None:
    """B62."""
    proxy = "http://p:pr0xy@127.0.0.1:1"
    async with asking("https://registry.example", http_proxy=proxy) as client:
        with pytest.raises(UpstreamUnreachable) as caught:
            await client.get_manifest(ALPINE, LATEST)
        assert "pr0xy" not in f"{caught.value!r} {client.events!r}"


async def test_a_storage_host_does_not_see_our_certificate_or_break_the_limit(upstream: Any) -> None:
    """B35: one connection at a time through a redirect, so that a single slot suffices."""
    digest = upstream.add_blob("library/alpine", LAYER)
    async with FakeStorage(upstream), asking(upstream.url, max_connections=1) as client:
        assert await client.fetch(digest) == LAYER
