"""A growing file: its bytes, its hash, and what a failing disk leaves."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from regmirror.downloads.growing_file import GrowingFile
from regmirror.downloads.source import Spliced
from regmirror.oci.names import Digest
from tests.unit.downloads.scripted import DATA, DIGEST


@pytest.fixture
def bulk() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "bytes", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
async def growing(descriptor: int, bulk: ThreadPoolExecutor) -> AsyncIterator[GrowingFile]:
    growing = GrowingFile(descriptor, DIGEST.hasher(), bulk)
    yield growing
    await growing.close()


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    right.setblocking(False)
    yield left, right
    left.close()
    right.close()


async def test_appended_bytes_are_written_and_hashed(growing: GrowingFile, descriptor: int) -> None:
    await growing.append(DATA[:4_000])
    await growing.append(memoryview(DATA)[4_000:])
    assert (await growing.drain()).hexdigest() == DIGEST.encoded
    assert os.pread(descriptor, len(DATA) + 1, 0) == DATA


async def test_bytes_that_are_there_are_hashed(growing: GrowingFile, descriptor: int) -> None:
    os.pwrite(descriptor, DATA[:6_000], 0)
    await growing.read_back(6_000)
    await growing.append(DATA[6_000:])
    assert (await growing.drain()).hexdigest() == DIGEST.encoded


async def test_a_file_that_shrank_cannot_be_hashed(growing: GrowingFile, descriptor: int) -> None:
    os.pwrite(descriptor, DATA[:10], 0)
    with pytest.raises(OSError, match="shrank"):
        await growing.read_back(20)


async def test_spliced_bytes_are_written_and_hashed(
    growing: GrowingFile, descriptor: int, sockets: tuple[socket.socket, socket.socket]
) -> None:
    left, right = sockets
    left.sendall(DATA)
    left.shutdown(socket.SHUT_WR)
    while growing.offset < len(DATA):
        await growing.prepare_splice()
        spliced = await growing.splice_from(right.fileno(), len(DATA))
        assert spliced is not None
        assert spliced.error is None
    ended = await growing.splice_from(right.fileno(), 1)
    assert ended is not None
    assert ended.count == 0
    assert (await growing.drain()).hexdigest() == DIGEST.encoded
    assert os.pread(descriptor, len(DATA) + 1, 0) == DATA


async def test_without_arrived_bytes_nothing_is_spliced(
    growing: GrowingFile, sockets: tuple[socket.socket, socket.socket]
) -> None:
    await growing.prepare_splice()
    assert await growing.splice_from(sockets[1].fileno(), 100) is None


async def test_bytes_that_the_file_does_not_take_are_returned(
    growing: GrowingFile, sockets: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """B44: they are in no other place any more."""
    left, right = sockets
    left.sendall(DATA[:5_000])
    real = os.splice

    def fail(source: int, target: int, count: int, *, offset_dst: int | None = None, flags: int = 0) -> int:
        if offset_dst is None:
            return real(source, target, count, flags=flags)
        raise OSError(errno.ENOSPC, "No space left on device")

    await growing.prepare_splice()
    monkeypatch.setattr(os, "splice", fail)
    spliced = await growing.splice_from(right.fileno(), 5_000)
    assert spliced is not None
    assert spliced.error is not None
    assert spliced.error.errno == errno.ENOSPC
    assert spliced.unwritten == DATA[: spliced.count]
    assert growing.offset == 0


async def test_a_file_system_without_splice_is_written_by_copies(
    growing: GrowingFile,
    descriptor: int,
    sockets: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left, right = sockets
    left.sendall(DATA[:5_000])
    real = os.splice

    def unsupported(
        source: int, target: int, count: int, *, offset_dst: int | None = None, flags: int = 0
    ) -> int:
        if offset_dst is None:
            return real(source, target, count, flags=flags)
        raise OSError(errno.EINVAL, "Invalid argument")

    await growing.prepare_splice()
    monkeypatch.setattr(os, "splice", unsupported)
    spliced = await growing.splice_from(right.fileno(), 5_000)
    assert spliced is not None
    assert os.pread(descriptor, 5_000, 0) == DATA[: spliced.count]


async def test_a_socket_that_fails_is_an_error_of_the_socket(growing: GrowingFile, descriptor: int) -> None:
    await growing.prepare_splice()
    with pytest.raises(OSError, match=r"Bad file descriptor|Invalid argument"):
        await growing.splice_from(10_000, 100)


async def test_a_closed_file_is_hashed_no_further(growing: GrowingFile) -> None:
    await growing.close()
    growing.offset = 5
    with pytest.raises(OSError, match="closed before"):
        await growing.drain()


async def splice_all(growing: GrowingFile, sockets: tuple[socket.socket, socket.socket]) -> Spliced:
    """Splice DATA, which fits into one turn."""
    left, right = sockets
    left.sendall(DATA)
    await growing.prepare_splice()
    spliced = await growing.splice_from(right.fileno(), len(DATA))
    assert spliced is not None
    return spliced


async def test_a_full_device_without_splice_returns_all_bytes(
    bulk: ThreadPoolExecutor, sockets: tuple[socket.socket, socket.socket]
) -> None:
    """The bytes left the pipe before the write failed; they are not waited for there."""
    descriptor = os.open("/dev/full", os.O_RDWR)
    growing = GrowingFile(descriptor, DIGEST.hasher(), bulk)
    try:
        spliced = await splice_all(growing, sockets)
        assert spliced.error is not None
        assert spliced.error.errno == errno.ENOSPC
        assert spliced.unwritten == DATA[: spliced.count]
        assert growing.offset == 0
    finally:
        await growing.close()
        os.close(descriptor)


async def test_a_write_that_fails_in_the_middle_counts_what_was_written(
    growing: GrowingFile,
    descriptor: int,
    sockets: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    splice, pwrite, left = os.splice, os.pwrite, [1_000, 500]

    def splice_in_only(source: int, target: int, count: int, **options: int) -> int:
        if target == descriptor:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return splice(source, target, count, **options)

    def write_short(target: int, data: memoryview, offset: int) -> int:
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(target, data[: left.pop()], offset)

    monkeypatch.setattr(os, "splice", splice_in_only)
    monkeypatch.setattr(os, "pwrite", write_short)
    spliced = await splice_all(growing, sockets)
    assert growing.offset == 1_500
    assert spliced.unwritten == DATA[1_500 : spliced.count]
    assert (await growing.drain()).hexdigest() == Digest.of(DATA[:1_500]).encoded


async def test_the_hash_is_never_behind_bytes_that_are_hashed_as_they_are_appended(
    descriptor: int, bulk: ThreadPoolExecutor
) -> None:
    """A hash thread that ends at this moment would hash them again."""
    behind: list[int] = []

    class Watched(GrowingFile):
        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if name in ("offset", "_hashed") and hasattr(self, "_hashed"):
                behind.append(self.offset - self._hashed)

    growing = Watched(descriptor, DIGEST.hasher(), bulk)
    await growing.append(DATA)
    await growing.close()
    assert len(behind) > 2
    assert max(behind) == 0


async def test_the_hash_is_not_returned_while_a_thread_may_update_it(
    descriptor: int, bulk: ThreadPoolExecutor, sockets: tuple[socket.socket, socket.socket]
) -> None:
    has_hashed, may_end = threading.Event(), threading.Event()

    class Slow(GrowingFile):
        def _hash(self) -> None:
            super()._hash()
            has_hashed.set()
            may_end.wait(10)

    growing = Slow(descriptor, DIGEST.hasher(), bulk)
    await splice_all(growing, sockets)
    await asyncio.to_thread(has_hashed.wait, 10)
    draining = asyncio.create_task(growing.drain())
    done, _ = await asyncio.wait([draining], timeout=0.05)
    may_end.set()
    await draining
    await growing.close()
    assert not done
