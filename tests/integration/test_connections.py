"""Connections: how many are open, what follows the last request of one, and readers that stop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import sys

import pytest
import trustme

from regmirror.server.delivery_monitor import LEAST, STALLED, WINDOW, count_acknowledged
from tests.fake_registry import random_bytes
from tests.mirror_fixture import NAME, list_open_files, run_program, wait_until

TAG = "/v2/team/app/manifests/1"
LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
os.execvp(sys.argv[3], sys.argv[3:])
"""


def limited(soft, hard):
    """A command that runs another one with so many descriptors."""
    return (sys.executable, "-c", LIMITED, str(soft), str(hard))


def request(path, *headers, version="1.1"):
    return ("\r\n".join([f"GET {path} HTTP/{version}", "Host: mirror", *headers]) + "\r\n\r\n").encode()


# --- bytes behind a request that is the last one ---


CLOSE = request("/v2/", "Connection: close")
H2C = request("/v2/", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQ")


@pytest.mark.parametrize(
    ("pieces", "responses"),
    [
        pytest.param([CLOSE + request(TAG)], 1, id="a request behind the last one"),
        pytest.param([CLOSE + b"junk"], 1, id="junk behind the last one"),
        pytest.param([CLOSE[:-1], CLOSE[-1:] + request(TAG)], 1, id="in two pieces"),
        pytest.param([request("/v2/", version="1.0") + request(TAG)], 1, id="HTTP/1.0"),
        pytest.param([request("/v2/") * 2 + CLOSE + b"junk"], 3, id="pipelined before"),
        pytest.param([request("/v2/", "Content-Length: 0", "Connection: close") + CLOSE], 1, id="no length"),
        pytest.param([H2C + CLOSE], 2, id="behind an upgrade"),
        pytest.param([H2C + request("/v2/") + CLOSE], 3, id="two behind an upgrade"),
    ],
)
async def test_each_request_until_the_last_one_gets_its_response(mirror, pieces, responses):
    """B57: what follows a request that ends the connection is ignored; an upgrade is declined."""
    reader, writer = await asyncio.open_connection("127.0.0.1", mirror.port)
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for piece in pieces:
        writer.write(piece)
        await asyncio.sleep(0.05 if len(pieces) > 1 else 0)
    async with asyncio.timeout(10):
        received = await reader.read()
    writer.close()
    assert received.count(b"HTTP/1.") == received.count(b" 200 OK\r\n") == responses


# --- descriptors ---


@contextlib.contextmanager
def idle_connections(port, count):
    """So many connections that never ask for anything."""
    ends = []
    try:
        for _ in range(count):
            ends.append(socket.create_connection(("127.0.0.1", port), timeout=10))  # noqa: PERF401  # closed below
        yield ends
    finally:
        for end in ends:
            end.close()


@pytest.mark.parametrize("workers", [1, 2])
async def test_idle_connections_in_any_number_stop_no_pull(upstream, storage, workers):
    """B100: the longest idle are closed to make room, and the log says little about it."""
    image = upstream.add_image("team/app", "1", [random_bytes(300_000)])
    started = run_program(storage, {NAME: upstream}, workers=workers, through=limited(512, 512))
    async with started as program:
        with idle_connections(program.port, 1200):
            for _ in range(3):
                pulled = await program.get(TAG, {"Connection": "close"})
                assert (pulled.status, pulled.body) == (200, image.manifest)
                layer = await program.get(f"/v2/team/app/blobs/{image.layer_digests[0]}")
                assert (layer.status, layer.body) == (200, image.layers[0])
            assert len(program.log) < 20_000
            for pid in program.workers() or [program.process.pid]:
                assert len(list_open_files(pid)) < 300
    assert upstream.count("blob", "GET") == 1


async def test_what_is_in_progress_is_not_closed_to_make_room(upstream, storage):
    """B100: a response in progress goes on beside any number of idle connections."""
    blob = random_bytes(4_000_000)
    digest = upstream.add_blob("team/app", blob)
    pause = upstream.pause(after=2_000_000, times=1)
    async with (
        run_program(storage, {NAME: upstream}, through=limited(512, 512)) as program,
        program.open(f"/v2/team/app/blobs/{digest}") as response,
    ):
        begin = await response.content.readexactly(1_000)
        with idle_connections(program.port, 600):
            pause.release()
            assert begin + await response.read() == blob


async def test_the_soft_limit_of_descriptors_is_raised(upstream, storage):
    """B100: what systemd and shells give to every process is not what this one may have."""
    async with run_program(storage, {NAME: upstream}, through=limited(128, 1024)) as program:
        with idle_connections(program.port, 300) as ends:
            assert (await program.get("/v2/")).status == 200
            await wait_until(lambda: len(list_open_files(program.process.pid)) > 300, "all are open")
            ends[0].sendall(request("/v2/"))
            assert ends[0].recv(17) == b"HTTP/1.1 200 OK\r\n"


async def test_unfinished_handshakes_stop_no_pull(upstream, storage, tmp_path):
    """B100: connections to the TLS port that say nothing are closed, too."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    server = {"tls": {"certificate": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")}}
    started = run_program(storage, {NAME: upstream}, through=limited(512, 512), server=server)
    async with started as program:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        with idle_connections(program.port, 700):
            reader, writer = await asyncio.open_connection("127.0.0.1", program.port, ssl=context)
            writer.write(request("/v2/", "Connection: close"))
            async with asyncio.timeout(10):
                assert (await reader.read()).startswith(b"HTTP/1.1 200 OK\r\n")
            writer.close()


# --- readers that stop ---

LARGE = 24_000_000  # bytes; more than the buffers of the kernel at both ends
BLOB = random_bytes(LARGE)


class Reader:
    """A client that takes only what ``take`` says; its kernel holds little for it."""

    def __init__(self, port, path, tls=None):
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 131_072)
        self._socket.settimeout(10)
        self._socket.connect(("127.0.0.1", port))
        if tls:
            self._socket = tls.wrap_socket(self._socket, server_hostname="127.0.0.1")
        self._socket.sendall(request(path))

    def take(self, count):
        """Read so many bytes, or fewer at the end; how many."""
        taken = 0
        while taken < count and (piece := self._socket.recv(min(65_536, count - taken))):
            taken += len(piece)
        return taken

    def close(self):
        self._socket.close()


@contextlib.asynccontextmanager
async def stopped_readers(mirror, path, count=1, tls=None):
    """Readers that took the first bytes and then nothing, until the mirror could send no more."""
    readers = []
    try:
        for _ in range(count):
            readers.append(await asyncio.to_thread(Reader, mirror.port, path, tls))
            await asyncio.to_thread(readers[-1].take, 1_000)
        await wait_until(lambda: len(busy(mirror)) >= count, "all are in progress")
        yield readers
    finally:
        for reader in readers:
            reader.close()


def busy(mirror):
    return [item.wire for item in mirror.server.open_connections() if item.wire and not item.is_idle()]


async def look(mirror, after):
    """What the monitor finds so many seconds after now; what it closes is closed on return."""
    mirror.server.monitor.poll(mirror.server.open_connections(), asyncio.get_running_loop().time() + after)
    await asyncio.sleep(0)


async def look_on(mirror, condition):
    """Look once in each window until the condition holds; what was on its way arrives meanwhile."""
    for number in range(1, 200):
        await look(mirror, number * WINDOW)
        if condition():
            return
        await asyncio.sleep(0.02)
    pytest.fail("not within many windows")


@pytest.fixture
def large_manifest(upstream):
    image = upstream.add_image("team/app", "1", [b""], annotations={"padding": "x" * 7_500_000})
    return image.manifest


@pytest.fixture
def path(upstream):
    return f"/v2/team/app/blobs/{upstream.add_blob('team/app', BLOB)}"


@pytest.fixture(params=["http", "https"])
async def served(request, start_mirror):
    """A mirror, and the TLS context of its clients."""
    if request.param == "http":
        return await start_mirror(), None
    authority, context = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(context)
    return await start_mirror(authority=authority), context


@pytest.mark.parametrize("state", ["cold", "warm"])
@pytest.mark.parametrize("kind", ["blob", "manifest"])
async def test_a_reader_that_stops_is_dropped(served, upstream, path, large_manifest, kind, state):
    """B100: whoever writes, and by whatever protocol: one deadline for progress."""
    mirror, tls = served
    path = path if kind == "blob" else TAG
    if state == "warm":
        await mirror.get(path, {"Connection": "close"})
    async with stopped_readers(mirror, path, tls=tls):
        await look(mirror, 0)
        await look(mirror, WINDOW / 2)
        assert len(busy(mirror)) == 1
        await look_on(mirror, lambda: not busy(mirror))
        await wait_until(lambda: not mirror.server.open_connections(), "nothing is left of it")
    await wait_until(
        lambda: not any("/data/blobs/" in name for name in list_open_files()), "the file is closed"
    )


async def test_a_reader_that_takes_next_to_nothing_is_dropped(mirror, path):
    """B100: a few bytes now and then are no progress."""
    await mirror.get(path)
    async with stopped_readers(mirror, path) as [reader]:
        for after in range(0, 3 * int(WINDOW), 10):
            await look(mirror, after)
            with contextlib.suppress(OSError):
                await asyncio.to_thread(reader.take, 1)
        await wait_until(lambda: not busy(mirror), "it is dropped")


async def test_a_reader_that_has_stopped_makes_room_for_others(mirror, path):
    """B100: where no descriptor is left, after ten seconds and not before."""
    await mirror.get(path)
    loop = asyncio.get_running_loop()
    async with stopped_readers(mirror, path):
        mirror.server.monitor.poll(mirror.server.open_connections(), loop.time())
        assert not mirror.server.drop_slowest_reader()
        for window in mirror.server.monitor._windows.values():
            window.since = loop.time() - STALLED
        assert mirror.server.drop_slowest_reader()
        await wait_until(lambda: not busy(mirror), "it is dropped")


async def test_a_slow_reader_gets_everything(mirror, path):
    """B17: a little more than the least that is asked of it, in each window, for many windows."""
    await mirror.get(path)
    async with stopped_readers(mirror, path) as [reader]:
        for number in range(40):
            await look(mirror, number * WINDOW / 2)
            before = acknowledged(mirror)
            assert await asyncio.to_thread(reader.take, 4 * LEAST) == 4 * LEAST
            await wait_until(lambda: acknowledged(mirror) >= before + LEAST, "it is noticed")  # noqa: B023
        rest = LARGE - 40 * 4 * LEAST - 1_000
        assert await asyncio.to_thread(reader.take, rest) == rest


def acknowledged(mirror):
    [transport] = busy(mirror)
    return count_acknowledged(transport.get_extra_info("socket"))[0]


async def test_a_reader_that_waits_for_the_upstream_is_not_dropped(mirror, upstream, path):
    """B17: a slow upstream is not the client's fault."""
    pause = upstream.pause(after=100_000, times=1)
    async with mirror.open(path) as response:
        assert await response.content.readexactly(99_999) == BLOB[:99_999]
        for number in range(5):
            await look(mirror, number * WINDOW)
        pause.release()
        assert await response.read() == BLOB[99_999:]


async def test_stopped_readers_give_back_the_connections_of_their_upstream(start_mirror, upstream, path):
    """B100, B35: while nothing can be stored, each reader has a connection to the upstream."""
    limits = {"storage": {"max_size": "1000"}, "upstreams": {NAME: {"max_connections": 8}}}
    mirror = await start_mirror(**limits)
    other = upstream.add_blob("team/app", b"another")
    async with stopped_readers(mirror, path, count=7):
        await look(mirror, 0)
        waiting = asyncio.create_task(mirror.get(f"/v2/team/app/blobs/{other}"))
        await wait_until(lambda: len(busy(mirror)) == 8, "it waits")
        await look_on(mirror, waiting.done)
        response = await waiting
        assert (response.status, response.body) == (200, b"another")


async def test_responses_that_are_not_read_are_not_copied(mirror, upstream, large_manifest):
    """B100: each connection holds a slice of a manifest, not all of it."""
    await mirror.get(TAG)
    async with stopped_readers(mirror, TAG, count=20):
        await asyncio.sleep(0)
        held = sum(transport.get_write_buffer_size() for transport in busy(mirror))
        assert held <= 20 * 512 * 1024
