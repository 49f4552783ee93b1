"""Several processes on one store: the real program, killed at bad moments."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3

import pytest

from regmirror.metadata.upgrade import database_path
from regmirror.oci.names import Digest
from tests.fake_registry import Corrupt, Hold, Status, random_bytes
from tests.mirror_fixture import NAME, list_open_files, run_program, wait_until

SIZE = 4_000_000
HALF = SIZE // 2
BLOB = random_bytes(SIZE)
APP = "/v2/team/app"


@pytest.fixture
def digest(upstream):
    return upstream.add_blob("team/app", BLOB)


@pytest.fixture
def path(digest):
    return f"{APP}/blobs/{digest}"


def staged_file(storage, digest):
    return storage / "staging" / f"sha256-{Digest(digest).encoded}"


def staged_bytes(storage, digest):
    file = staged_file(storage, digest)
    return file.stat().st_size if file.exists() else 0


def check_database(storage):
    connection = sqlite3.connect(database_path(storage))
    try:
        return connection.execute("PRAGMA integrity_check").fetchall()
    finally:
        connection.close()


async def test_the_workers_of_one_program_share_one_fetch(upstream, storage, digest, path):
    """B13: forty connections are spread over two processes by the kernel."""
    pause = upstream.pause(after=HALF, times=1)
    async with run_program(storage, {NAME: upstream}, workers=2) as program:
        assert len(program.workers()) == 2

        async def pull():
            async with program.open(path, headers={"Connection": "close"}) as response:
                first = await response.content.readexactly(1_000)
                begun.release()
                return first + await response.read()

        begun = asyncio.Semaphore(0)
        pulls = [asyncio.create_task(pull()) for _ in range(40)]
        for _ in pulls:
            await begun.acquire()
        assert not pause.is_open
        pause.release()
        assert all(body == BLOB for body in await asyncio.gather(*pulls))
    assert upstream.count("blob", "GET") == 1
    assert upstream.sent_bytes("blob") <= 1.01 * SIZE
    assert upstream.count("blob", "HEAD") <= 2


async def test_a_writer_that_is_killed_is_taken_over_by_who_followed_it(upstream, storage, digest, path):
    """B13, B19: by Range, and the client of the other process sees one clean body."""
    pause = upstream.pause(after=HALF, times=1)
    async with (
        run_program(storage, {NAME: upstream}) as writer,
        run_program(storage, {NAME: upstream}) as follower,
    ):
        async with writer.open(path) as first, follower.open(path) as second:
            await first.content.readexactly(HALF)
            begin = await second.content.readexactly(HALF)
            assert upstream.count("blob", "GET") == 1
            writer.kill()
            assert begin + await second.read() == BLOB
        await pause.wait_until_empty()
        asked = upstream.find("blob", "GET")
        assert [request.headers.get("Range") for request in asked] == [None, f"bytes={HALF}-"]
        assert upstream.sent_bytes("blob") <= 1.02 * SIZE
        await wait_until(lambda: not list((storage / "staging").iterdir()), "nothing is left over")
        assert (await follower.get(path)).headers["Cache-Status"] == "regmirror; hit"


@pytest.mark.parametrize("fault", [Corrupt(), Status(404)], ids=["wrong bytes", "no such blob"])
async def test_the_failure_of_one_process_is_that_of_its_followers(upstream, storage, digest, path, fault):
    """B2, B20: no process asks again for those who waited."""
    hold = Hold()
    upstream.fault(hold, fault, kind="blob", method="GET")
    async with (
        run_program(storage, {NAME: upstream}) as writer,
        run_program(storage, {NAME: upstream}) as follower,
    ):
        first = asyncio.create_task(writer.send_raw(raw_get(path)))
        await hold.wait_for_arrivals()
        second = asyncio.create_task(follower.send_raw(raw_get(path)))
        file = f"{staged_file(storage, digest)}.note"
        await wait_until(lambda: file in list_open_files(follower.process.pid), "the second follows")
        hold.release()
        for response in await asyncio.gather(first, second):
            head, _, body = response.partition(b"\r\n\r\n")
            if isinstance(fault, Status):
                assert head.startswith(b"HTTP/1.1 404 ")
            elif not head.startswith(b"HTTP/1.1 502 "):  # as a follower that sees nothing before the end
                assert f"Content-Length: {SIZE}".encode() in head
                assert len(body) < SIZE
        assert upstream.count("blob", "GET") == 1
        assert list((storage / "blobs").glob("*/*")) == []


def raw_get(path):
    return f"GET {path} HTTP/1.1\r\nHost: mirror\r\nConnection: close\r\n\r\n".encode()


async def test_a_download_is_resumed_after_kill_9(upstream, storage, digest, path):
    """B7, B19: the database is whole, and what was on disk is not fetched again."""
    pause = upstream.pause(after=HALF, times=1)
    async with run_program(storage, {NAME: upstream}) as program, program.open(path) as response:
        await response.content.readexactly(1_000)
        await wait_until(lambda: staged_bytes(storage, digest) == HALF, "one half is on disk")
        program.kill()
    await pause.wait_until_empty()
    assert check_database(storage) == [("ok",)]
    async with run_program(storage, {NAME: upstream}) as program:
        assert (await program.get(path)).body == BLOB
        assert upstream.find("blob", "GET")[-1].headers["Range"] == f"bytes={HALF}-"
        await wait_until(lambda: not list((storage / "staging").iterdir()), "nothing is left over")
    assert upstream.sent_bytes("blob") <= 1.02 * SIZE
    assert check_database(storage) == [("ok",)]


async def test_left_over_bytes_that_are_wrong_are_never_served(upstream, storage, digest, path):
    """B7: a power cut may leave zeros where bytes were; one pull fails, the next one works."""
    pause = upstream.pause(after=HALF, times=1)
    async with run_program(storage, {NAME: upstream}) as program, program.open(path) as response:
        await response.content.readexactly(1_000)
        await wait_until(lambda: staged_bytes(storage, digest) == HALF, "one half is on disk")
        program.kill()
    await pause.wait_until_empty()
    with staged_file(storage, digest).open("r+b") as file:
        file.seek(HALF - 1_000)
        file.write(bytes(1_000))
    async with run_program(storage, {NAME: upstream}) as program:
        body = (await program.send_raw(raw_get(path))).partition(b"\r\n\r\n")[2]
        assert len(body) < SIZE
        assert (await program.get(path)).body == BLOB


async def test_a_worker_that_is_killed_is_replaced(upstream, storage, path):
    """Both serve again, and the program goes on until it is told to stop."""
    async with run_program(storage, {NAME: upstream}, workers=2) as program:
        before = set(program.workers())
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        await wait_until(lambda: len(set(program.workers()) - before) == 1, "another worker has started")
        pulls = [program.get(path, {"Connection": "close"}) for _ in range(20)]
        assert all(got.body == BLOB for got in await asyncio.gather(*pulls))
        assert f"worker {victim} ended" in program.log
        assert await asyncio.to_thread(program.stop) == 0
    assert upstream.count("blob", "GET") == 1


@pytest.mark.parametrize("workers", [1, 2])
async def test_what_is_in_flight_ends_before_the_program_does(upstream, storage, path, workers):
    """B79: SIGTERM lets a transfer end within the limit."""
    pause = upstream.pause(after=HALF, times=1)
    server = {"drain_timeout": "10s"}
    async with run_program(storage, {NAME: upstream}, workers=workers, server=server) as program:
        async with program.open(path, headers={"Connection": "close"}) as response:
            begin = await response.content.readexactly(1_000)
            program.process.terminate()
            pause.release()
            assert begin + await response.read() == BLOB
        assert await asyncio.to_thread(program.process.wait, 10) == 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_signal_in_the_last_moments_does_not_end_it_badly(upstream, storage, path, workers):
    """B79: whoever stops it asks more than once, until it has gone."""
    async with run_program(storage, {NAME: upstream}, workers=workers) as program:
        assert (await program.get(path)).body == BLOB
        for _ in range(2_000):
            program.process.terminate()
            if program.process.poll() is not None:
                break
            await asyncio.sleep(0.005)
        assert program.process.poll() == 0
