"""Files to sockets, beside the event loop."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from regmirror.v2.sender import INLINE, LOADERS, STEP, FileTooShort, Sender, _Job
from tests.fake_registry import random_bytes
from tests.mirror_fixture import list_open_files, wait_until

DATA = random_bytes(3 * STEP)
Connect = Callable[[], tuple[socket.socket, socket.socket]]
SMALL = 4_096  # bytes of a socket's buffers, so that a reader who does not read is noticed


@pytest.fixture
def sender() -> Iterator[Sender]:
    sender = Sender()
    yield sender
    sender.close()


@pytest.fixture
def source(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "blob"
    path.write_bytes(DATA)
    descriptor = os.open(path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def connect() -> Iterator[Connect]:
    """A function that makes a connection: the server's end and the client's."""
    ends: list[socket.socket] = []

    def connected() -> tuple[socket.socket, socket.socket]:
        pair = socket.socketpair()
        ends.extend(pair)
        for end in pair:
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        return pair

    yield connected
    for end in ends:
        end.close()


async def receive(end: socket.socket, count: int) -> bytes:
    loop, received = asyncio.get_running_loop(), bytearray()
    while len(received) < count:
        piece = await loop.sock_recv(end, min(65_536, count - len(received)))
        assert piece, f"the connection ended after {len(received)} of {count} bytes"
        received += piece
    return bytes(received)


@pytest.mark.parametrize(
    ("offset", "count"),
    [(0, 1), (100, 1_000), (7, INLINE), (7, INLINE + 1), (STEP - 1, STEP + 2), (0, len(DATA))],
)
async def test_the_bytes_of_the_range_arrive_and_no_others(
    sender: Sender, source: int, connect: Connect, offset: int, count: int
) -> None:
    server, client = connect()
    receiving = asyncio.create_task(receive(client, count))
    await sender.send(server.fileno(), source, offset, count)
    assert await receiving == DATA[offset : offset + count]
    with pytest.raises(BlockingIOError):
        client.recv(1)


async def test_who_does_not_read_delays_nobody(sender: Sender, source: int, connect: Connect) -> None:
    """B17: one thread serves both."""
    slow, _ = connect()
    waiting = asyncio.create_task(sender.send(slow.fileno(), source, 0, len(DATA)))
    server, client = connect()
    receiving = asyncio.create_task(receive(client, len(DATA)))
    await sender.send(server.fileno(), source, 0, len(DATA))
    assert await receiving == DATA
    assert not waiting.done()
    waiting.cancel()


async def test_many_are_served_at_once_by_several_threads(source: int, connect: Connect) -> None:
    sender = Sender(threads=2)
    pairs = [connect() for _ in range(10)]
    receiving = [asyncio.create_task(receive(client, len(DATA))) for _, client in pairs]
    await asyncio.gather(*(sender.send(server.fileno(), source, 0, len(DATA)) for server, _ in pairs))
    assert all(received == DATA for received in await asyncio.gather(*receiving))
    sender.close()


@pytest.mark.parametrize("count", [1_000, len(DATA)])
async def test_a_file_that_ends_early_is_an_error(
    sender: Sender, source: int, connect: Connect, count: int
) -> None:
    """B6: a promised byte that is missing must not go unnoticed."""
    server, client = connect()
    receiving = asyncio.create_task(receive(client, len(DATA) - 10))
    with pytest.raises(FileTooShort):
        await sender.send(server.fileno(), source, len(DATA) - min(count, 10), count)
    receiving.cancel()


@pytest.mark.parametrize("leaves", ["before", "meanwhile"])
async def test_a_peer_that_is_gone_is_a_connection_error(
    sender: Sender, source: int, connect: Connect, leaves: Any
) -> None:
    server, client = connect()
    if leaves == "before":
        client.close()
    sending = asyncio.create_task(sender.send(server.fileno(), source, 0, len(DATA)))
    if leaves == "meanwhile":
        await receive(client, 1_000)
        client.close()
    with pytest.raises(ConnectionError):
        await sending


async def test_cancelling_leaves_the_callers_descriptors_open(
    sender: Sender, source: int, connect: Connect
) -> None:
    gc.collect()  # what earlier tests left to be closed is closed now
    before = len(list_open_files())
    server, client = connect()
    sending = asyncio.create_task(sender.send(server.fileno(), source, 0, len(DATA)))
    await receive(client, 1_000)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    # Two for the connection, two for the thread, and none for the job.
    await wait_until(lambda: len(list_open_files()) == before + 4, "the job's are closed")
    assert os.pread(source, 5, 0) == DATA[:5]
    assert server.fileno() >= 0


async def test_a_job_that_is_cancelled_as_its_socket_gets_room_stops_no_other(
    sender: Sender, source: int, connect: Connect
) -> None:
    """B17: the thread is told both at once, in either order, and goes on."""
    await _send_whole(sender, source, connect)
    thread = sender._threads[0]
    thread._epoll = _WakeFirst(  # type: ignore[assignment]
        thread._epoll, thread._wake
    )
    for _ in range(3):
        server, client = connect()
        sending = asyncio.create_task(sender.send(server.fileno(), source, 0, len(DATA)))
        await receive(client, 1_000)
        sending.cancel()
        await asyncio.wait([sending])
        await _send_whole(sender, source, connect)
    assert thread._thread.is_alive()


async def _send_whole(sender: Sender, source: int, connect: Connect) -> None:
    server, client = connect()
    receiving = asyncio.create_task(receive(client, len(DATA)))
    await sender.send(server.fileno(), source, 0, len(DATA))
    assert await receiving == DATA


class _WakeFirst:
    """An epoll that reports every socket it knows right after a wake-up, as a busy one does."""

    def __init__(self, epoll: Any, wake: int) -> None:
        self._epoll, self._wake = epoll, wake
        self._known: set[int] = set()

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        events: list[tuple[int, int]] = self._epoll.poll(timeout)
        if any(descriptor == self._wake for descriptor, _ in events):
            return [(self._wake, 1), *((descriptor, 4) for descriptor in self._known)]
        return events

    def register(self, descriptor: int, events: int) -> None:
        self._known.add(descriptor)
        self._epoll.register(descriptor, events)

    def unregister(self, descriptor: int) -> None:
        self._known.discard(descriptor)
        self._epoll.unregister(descriptor)

    def close(self) -> None:
        self._epoll.close()


async def test_closing_aborts_what_is_being_sent(sender: Sender, source: int, connect: Connect) -> None:
    server, _ = connect()
    sending = asyncio.create_task(sender.send(server.fileno(), source, 0, len(DATA)))
    await wait_until(lambda: sender._threads != [], "a thread has the job")
    sender.close()
    with pytest.raises(ConnectionAbortedError, match="stopping"):
        await sending


async def test_a_socket_that_is_shut_down_ends_what_is_sent(
    sender: Sender, source: int, connect: Connect
) -> None:
    """B17: so the connection of a reader that has stopped is dropped, and no descriptor stays."""
    server, _ = connect()
    sending = asyncio.create_task(sender.send(server.fileno(), source, 0, len(DATA)))
    await wait_until(lambda: sender._threads != [], "a thread has the job")
    server.shutdown(socket.SHUT_RDWR)
    with pytest.raises(BrokenPipeError):
        await sending


# --- bytes that are on the disk alone ---


@pytest.fixture
def cold(tmp_path: Path) -> Iterator[int]:
    """A file whose bytes the kernel does not hold in memory, where the file system can do that."""
    descriptor = os.open(tmp_path / "cold", os.O_RDWR | os.O_CREAT)
    os.write(descriptor, DATA)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch, cold: int) -> Iterator[threading.Event]:
    """An event: until it is set, nothing of ``cold`` is in memory, and whatever reads it there waits.

    What the kernel says of it changes as soon as somebody asks: it begins to read.
    """
    ready, load = threading.Event(), _Job.load
    number = os.fstat(cold).st_ino

    def wait(job: _Job) -> None:
        assert ready.wait(20)
        load(job)

    def is_there(descriptor: int) -> bool:
        return ready.is_set() or os.fstat(descriptor).st_ino != number

    def count(descriptor: int, _offset: int, count: int, _step: int) -> int:
        return count if is_there(descriptor) else 0

    monkeypatch.setattr(_Job, "load", wait)
    monkeypatch.setattr("regmirror.v2.sender.count_cached", count)
    yield ready
    ready.set()


@pytest.mark.parametrize("count", [1, 1_000, INLINE, len(DATA)])
async def test_what_is_on_the_disk_alone_arrives(
    sender: Sender, cold: int, connect: Connect, count: int
) -> None:
    server, client = connect()
    receiving = asyncio.create_task(receive(client, count))
    await sender.send(server.fileno(), cold, 0, count)
    assert await receiving == DATA[:count]


@pytest.mark.parametrize("count", [1_000, len(DATA)])
async def test_a_slow_disk_delays_only_those_who_need_it(
    sender: Sender, source: int, cold: int, connect: Connect, slow_disk: threading.Event, count: int
) -> None:
    """B17: more streams than there are threads wait for the disk; others and the loop go on."""
    pairs = [connect() for _ in range(LOADERS + 3)]
    waiting = [asyncio.create_task(sender.send(end.fileno(), cold, 0, count)) for end, _ in pairs]
    receiving = [asyncio.create_task(receive(client, count)) for _, client in pairs]
    await asyncio.sleep(0)
    await _send_whole(sender, source, connect)
    assert not [task for task in waiting if task.done()]
    slow_disk.set()
    await asyncio.gather(*waiting)
    assert all(received == DATA[:count] for received in await asyncio.gather(*receiving))


async def test_closing_aborts_what_waits_for_the_disk(
    cold: int, connect: Connect, slow_disk: threading.Event
) -> None:
    sender = Sender()
    before = len(list_open_files())
    pairs = [connect() for _ in range(LOADERS + 3)]
    sending = [asyncio.create_task(sender.send(end.fileno(), cold, 0, len(DATA))) for end, _ in pairs]
    await wait_until(lambda: sender._loaders._work_queue.qsize() == 3, "all wait for the disk")
    asyncio.get_running_loop().call_later(0.05, slow_disk.set)
    await asyncio.to_thread(sender.close)
    ended = await asyncio.gather(*sending, return_exceptions=True)
    assert {type(error) for error in ended} == {ConnectionAbortedError}
    assert len(list_open_files()) == before + 2 * len(pairs)


async def test_a_disk_that_fails_is_an_error(
    sender: Sender,
    source: int,
    cold: int,
    connect: Connect,
    slow_disk: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """B44: the response ends, and others go on."""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    server, _ = connect()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", fail)
        sending = asyncio.create_task(sender.send(server.fileno(), cold, 0, len(DATA)))
        await wait_until(
            lambda: bool(sender._threads and sender._threads[0]._loading), "it waits for the disk"
        )
        slow_disk.set()
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            await sending
    await _send_whole(sender, source, connect)
