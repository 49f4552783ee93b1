"""Large blobs, with detached bodies: plain ones are spliced, encrypted ones are read."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme

from regmirror.downloads.growing_file import GrowingFile
from regmirror.telemetry.events import DownloadEnded
from regmirror.upstream import detached_body as rawbody
from tests.fake_registry import Chunked, Corrupt, FakeRegistry, Reset, Truncate, random_bytes
from tests.mirror_fixture import NAME, InProcessMirror, run_mirror, wait_until

BLOB = random_bytes(12_000_000, seed=11)
CUT = 7_000_001


class SecureRegistry(FakeRegistry):
    """An upstream that speaks TLS, and the authority that mirrors must trust."""

    authority: trustme.CA


@pytest.fixture(params=["plain", "encrypted"])
async def upstream(request: pytest.FixtureRequest) -> AsyncIterator[FakeRegistry]:
    if request.param == "plain":
        async with FakeRegistry() as registry:
            yield registry
        return
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with SecureRegistry(ssl_context=context) as registry:
        registry.authority = authority
        yield registry


@pytest.fixture
async def mirror(upstream: FakeRegistry, tmp_path: Path) -> AsyncIterator[InProcessMirror]:
    options = {"read_timeout": "300ms"}
    if isinstance(upstream, SecureRegistry):
        file = tmp_path / "ca.pem"
        upstream.authority.cert_pem.write_to_path(file)
        options["ca_file"] = str(file)
    async with run_mirror(tmp_path / "data", {NAME: upstream}, upstreams={NAME: options}) as mirror:
        yield mirror


@pytest.fixture
def appended(monkeypatch: pytest.MonkeyPatch) -> dict[type, list[int]]:
    """The bytes that passed through this process: sizes of new objects and of reused buffers."""
    sizes: dict[type, list[int]] = {bytes: [], memoryview: []}
    append = GrowingFile.append

    async def count(self: GrowingFile, piece: bytes | memoryview) -> None:
        sizes[type(piece)].append(len(piece))
        await append(self, piece)

    monkeypatch.setattr(GrowingFile, "append", count)
    return sizes


def path_of(upstream: FakeRegistry, data: bytes = BLOB) -> str:
    return f"/v2/team/app/blobs/{upstream.add_blob('team/app', data)}"


def ranges(upstream: FakeRegistry) -> list[str | None]:
    return [request.headers.get("Range") for request in upstream.find("blob", "GET")]


async def assert_stored(mirror: InProcessMirror, path: str, data: bytes = BLOB) -> None:
    await wait_until(lambda: len(mirror.stored()) == 1, "the blob is stored")
    (stored,) = mirror.stored()
    assert stored == path.rsplit("/", 1)[1]
    again = await mirror.get(path)
    assert again.body == data
    assert again.headers["Cache-Status"] == "regmirror; hit"


async def test_a_large_blob_is_fetched_by_one_request(
    mirror: InProcessMirror, upstream: FakeRegistry, appended: dict[type, list[int]]
) -> None:
    """B1, B2: and only bytes that are encrypted, or were read already, pass through the process."""
    path = path_of(upstream)
    assert (await mirror.get(path)).body == BLOB
    assert ranges(upstream) == [None]
    read, decrypted = sum(appended[bytes]), sum(appended[memoryview])
    assert read < 2_500_000, "until the connection was taken over"
    assert decrypted == (len(BLOB) - read if upstream.url.startswith("https") else 0)
    await assert_stored(mirror, path)


@pytest.mark.parametrize("border", [rawbody.PLAIN_MIN, rawbody.ENCRYPTED_MIN])
@pytest.mark.parametrize("more", [-1, 0, 1, 300_000])
async def test_sizes_around_the_limit_are_fetched(
    mirror: InProcessMirror, upstream: FakeRegistry, border: int, more: int
) -> None:
    data = random_bytes(border + more, seed=12)
    path = path_of(upstream, data)
    assert (await mirror.get(path)).body == data
    await assert_stored(mirror, path, data)


@pytest.mark.parametrize("fault", [Truncate, Reset])
async def test_a_broken_body_is_resumed_by_range(
    mirror: InProcessMirror, upstream: FakeRegistry, fault: type[Truncate | Reset]
) -> None:
    """B19: nothing is fetched twice and nothing is missing."""
    upstream.fault(fault(CUT), kind="blob")
    path = path_of(upstream)
    assert (await mirror.get(path)).body == BLOB
    first, second = ranges(upstream)
    assert first is None
    assert second is not None
    start = int(second.removeprefix("bytes=").removesuffix("-"))
    assert start == CUT if fault is Truncate else start <= CUT
    await assert_stored(mirror, path)
    (ended,) = await mirror.events.wait_for(DownloadEnded)
    assert ended.resumed == 1


async def test_an_upstream_that_hangs_in_the_middle_is_resumed(
    mirror: InProcessMirror, upstream: FakeRegistry
) -> None:
    """B19, B30: after read_timeout, by Range."""
    pause = upstream.pause(after=CUT, kind="blob")
    path = path_of(upstream)
    assert (await mirror.get(path)).body == BLOB
    assert ranges(upstream) == [None, f"bytes={CUT}-"]
    pause.release()
    await assert_stored(mirror, path)


async def test_bytes_flow_while_the_upstream_still_sends(
    mirror: InProcessMirror, upstream: FakeRegistry
) -> None:
    """B2: bytes that have arrived do not wait for later ones."""
    pause = upstream.pause(after=CUT, kind="blob")
    async with mirror.open(path_of(upstream)) as response:
        received = await response.content.readexactly(CUT)
        assert received == BLOB[:CUT]
        pause.release()
        assert received + await response.content.read() == BLOB


async def test_wrong_bytes_are_never_a_complete_response(
    mirror: InProcessMirror, upstream: FakeRegistry
) -> None:
    """B2: the last byte waits for the hash, which runs behind the spliced bytes."""
    upstream.fault(Corrupt(CUT), kind="blob", times=None)
    path = path_of(upstream)
    async with mirror.open(path) as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.content.readexactly(len(BLOB))
        assert response.content.total_bytes == len(BLOB) - 1
    assert mirror.stored() == set()
    assert mirror.staged() == []


async def test_a_body_of_unknown_length_is_read(
    mirror: InProcessMirror, upstream: FakeRegistry, appended: dict[type, list[int]]
) -> None:
    upstream.fault(Chunked(), kind="blob")
    path = path_of(upstream)
    assert (await mirror.get(path)).body == BLOB
    assert sum(appended[bytes]) == len(BLOB)
    await assert_stored(mirror, path)


async def test_many_at_once(mirror: InProcessMirror, upstream: FakeRegistry) -> None:
    """B13: one request each, besides all others."""
    blobs = [random_bytes(9_000_000 + number, seed=number) for number in range(6)]
    paths = [path_of(upstream, data) for data in blobs]
    responses = await asyncio.gather(*(mirror.get(path) for path in paths * 3))
    assert [response.body for response in responses] == blobs * 3
    assert len(ranges(upstream)) == len(blobs)


@pytest.mark.parametrize("upstream", ["plain"], indirect=True)  # what is decrypted is hashed from memory
@pytest.mark.parametrize("is_far_behind", [True, False])
async def test_a_disk_that_cannot_be_read_back_is_no_fault_of_the_upstream(
    mirror: InProcessMirror, upstream: FakeRegistry, monkeypatch: pytest.MonkeyPatch, is_far_behind: bool
) -> None:
    """B44: nothing is stored, no client gets a complete response, and one request is made."""

    def fail(descriptor: int, buffers: Any, offset: int, *flags: int) -> int:
        raise OSError(5, "Input/output error")

    path = path_of(upstream)
    with monkeypatch.context() as patched:
        patched.setattr(os, "preadv", fail)
        if is_far_behind:
            patched.setattr("regmirror.downloads.growing_file.AHEAD_MAX", 1_000_000)
            patched.setattr("regmirror.downloads.growing_file.SPLICED_MAX", 1_000_000)
        async with mirror.open(path) as response:
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.content.readexactly(len(BLOB))
        (ended,) = await mirror.events.wait_for(DownloadEnded)
    assert ended.error == "the blob cannot be stored: Input/output error"
    assert ranges(upstream) == [None]
    assert mirror.stored() == set()
    assert (await mirror.get(path)).body == BLOB


async def test_a_file_system_without_splice_is_written(
    mirror: InProcessMirror, upstream: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.splice

    def refuse(source: int, target: int, count: int, *, offset_dst: int | None = None, flags: int = 0) -> int:
        if offset_dst is not None:
            raise OSError(22, "Invalid argument")
        return real(source, target, count, flags=flags)

    monkeypatch.setattr(os, "splice", refuse)
    path = path_of(upstream)
    assert (await mirror.get(path)).body == BLOB
    await assert_stored(mirror, path)
