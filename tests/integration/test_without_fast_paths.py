"""The server with an aiohttp that lacks private names: slower, with every response the same (0029)."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from regmirror.telemetry.events import DownloadEnded
from regmirror.upstream import detached_body
from regmirror.v2 import connection
from regmirror.v2.connection import Connection, FastConnection
from tests.conftest import StartMirror
from tests.fake_registry import FakeRegistry, Image, random_bytes
from tests.mirror_fixture import NAME, InProcessMirror, run_program

TAG = "/v2/team/app/manifests/1"
SIZE = 4 * 1024 * 1024  # bytes; a body of this size is detached
LAYER = random_bytes(SIZE)
DETACHED_OFF = "detached bodies are off"
REPLAY_OFF = "response cache is off"
#: A program that takes the names away and then runs the module that its arguments name.
WITHOUT_NAMES = """
import runpy, sys
import aiohttp
from regmirror.v2 import connection
del aiohttp.StreamReader.read_nowait
connection.PRIVATE_NAMES += ("_absent",)
sys.argv = sys.argv[3:]
runpy.run_module("regmirror", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(autouse=True)
def old_aiohttp(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An aiohttp without one name of each fast path."""
    monkeypatch.delattr(aiohttp.StreamReader, "read_nowait")
    monkeypatch.setattr(connection, "PRIVATE_NAMES", (*connection.PRIVATE_NAMES, "_absent"))
    detached_body.is_supported.cache_clear()
    yield
    detached_body.is_supported.cache_clear()


@pytest.fixture
def image(upstream: FakeRegistry) -> Image:
    return upstream.add_image("team/app", "1", [LAYER])


@pytest.fixture
def blob(image: Image) -> str:
    return f"/v2/team/app/blobs/{image.layer_digests[0]}"


@pytest.fixture
async def warm(mirror: InProcessMirror, blob: str) -> InProcessMirror:
    """The mirror with manifest and layer stored."""
    await mirror.get(TAG)
    await mirror.get(blob)
    await mirror.events.wait_for(DownloadEnded)
    return mirror


async def test_connections_are_served_by_the_ordinary_path(warm: InProcessMirror) -> None:
    await warm.get(TAG)
    kinds = {type(open_connection) for open_connection in warm.server.open_connections()}
    assert kinds == {Connection}
    assert not issubclass(Connection, FastConnection)


async def test_manifests_and_blobs_are_served(warm: InProcessMirror, image: Image, blob: str) -> None:
    """Cold before this, warm now; whole, by HEAD and in ranges."""
    for _ in range(2):
        manifest = await warm.get(TAG)
        assert (manifest.status, manifest.body) == (200, image.manifest)
        assert manifest.headers["Cache-Status"] == "regmirror; hit"
    head = await warm.head(TAG)
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", str(len(image.manifest)))
    whole = await warm.get(blob)
    assert (whole.status, whole.body) == (200, LAYER)
    size = (await warm.head(blob)).headers["Content-Length"]
    assert size == str(SIZE)
    part = await warm.get(blob, {"Range": "bytes=1000-1999"})
    assert (part.status, part.body) == (206, LAYER[1000:2000])


async def test_a_download_that_breaks_is_resumed(
    mirror: InProcessMirror, upstream: FakeRegistry, image: Image, blob: str
) -> None:
    """The bytes that were read through aiohttp are not fetched again."""
    pause = upstream.pause(after=SIZE // 2, times=1)
    async with mirror.open(blob) as response:
        await response.content.readexactly(1000)
        await pause.wait_for_arrivals()
        upstream.drop_connections()
        rest = await response.read()
    assert rest == LAYER[1000:]
    first, second = [request.headers.get("Range") for request in upstream.find("blob", "GET")]
    assert first is None
    assert second is not None
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= SIZE // 2


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        pytest.param(b"nonsense\r\n\r\n", 400, id="no HTTP"),
        pytest.param(
            b"GET / HTTP/1.1\r\nHost: m\r\nA: " + b"x" * 70_000 + b"\r\n\r\n", 400, id="long header"
        ),
    ],
)
async def test_a_bad_request_gets_an_error_of_the_registry_api(
    mirror: InProcessMirror, request_bytes: bytes, status: int
) -> None:
    received = await mirror.send_raw(request_bytes)
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 %d " % status)
    assert body.startswith(b'{"errors":[{"code":"UNSUPPORTED"')


async def test_pipelined_requests_have_responses_in_order(warm: InProcessMirror, image: Image) -> None:
    ping = b"GET /v2/ HTTP/1.1\r\nHost: m\r\n\r\n"
    tag = b"GET %s HTTP/1.1\r\nHost: m\r\n\r\n" % TAG.encode()
    last = b"GET /v2/ HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\njunk"
    received = await warm.send_raw(ping + tag + last)
    first, _, after = received.partition(image.manifest)
    assert (first.count(b"HTTP/1.1 200"), after.count(b"HTTP/1.1 200")) == (2, 1)


async def test_idle_connections_are_closed_and_busy_ones_drained(
    mirror: InProcessMirror, upstream: FakeRegistry, image: Image, blob: str
) -> None:
    """A drain ends connections without a request at once, and waits for the others."""
    reader, writer = await asyncio.open_connection("127.0.0.1", mirror.port)
    pause = upstream.pause(after=SIZE // 2, times=1)
    async with mirror.open(blob) as response:
        await response.content.readexactly(1000)
        await pause.wait_for_arrivals()
        draining = asyncio.create_task(mirror.server.drain(10))
        assert await asyncio.wait_for(reader.read(), 5) == b""
        assert not draining.done()
        pause.release()
        assert await response.read() == LAYER[1000:]
        await asyncio.wait_for(draining, 5)
    writer.close()


async def test_the_longest_idle_connection_is_closed_first(mirror: InProcessMirror) -> None:
    """One that has just been used stays."""
    unused = await asyncio.open_connection("127.0.0.1", mirror.port)
    await mirror.get("/v2/")
    assert mirror.server.close_longest_idle()
    assert await asyncio.wait_for(unused[0].read(), 5) == b""
    assert [open_connection.is_idle() for open_connection in mirror.server.open_connections()] == [True]
    unused[1].close()


async def test_one_warning_for_each_fast_path_at_start(
    start_mirror: StartMirror, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    await start_mirror()
    await start_mirror()
    assert sum(DETACHED_OFF in record.getMessage() for record in caplog.records) == 1
    assert REPLAY_OFF in capsys.readouterr().out


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_start_logs_each_warning_once(
    tmp_path: Path, upstream: FakeRegistry, image: Image, blob: str, workers: int
) -> None:
    """Not once in each worker, and not again with the first download."""
    through = (sys.executable, "-c", WITHOUT_NAMES)
    async with run_program(tmp_path / "data", {NAME: upstream}, workers=workers, through=through) as program:
        assert (await program.get(TAG)).body == image.manifest
        assert (await program.get(blob)).body == LAYER
        assert program.log.count(DETACHED_OFF) == 1
        [warning] = [line for line in program.log.splitlines() if REPLAY_OFF in line]
        assert '"missing": ["_absent"]' in warning or '"missing":["_absent"]' in warning
        assert "aiohttp<3.15" in warning
