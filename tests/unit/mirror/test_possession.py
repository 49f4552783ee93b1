"""Samples of blobs: unforeseeable, small, and not to be guessed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from regmirror.downloads.follower import Follower
from regmirror.errors import Unavailable
from regmirror.mirror.possession import ENOUGH, LENGTH, SMALL, Possession, Sample, Sampler, sends
from regmirror.oci.names import Digest
from tests.fake_registry import random_bytes
from tests.unit.mirror.world import APP, Upstream, World

DIGEST = Digest("sha256:" + "0" * 64)
OTHER = Digest("sha256:" + "1" * 64)
DATA = random_bytes(300_000)


class Bytes:
    """A blob of which ``arrived`` lists how much can be read at each look."""

    def __init__(self, data: bytes, arrived: Any = None) -> None:
        self._data, self._arrived = data, list(arrived or [len(data)])
        self.size: int | None = len(data)
        self.descriptor = None

    def close(self) -> None:
        pass

    async def wait_until_readable(self, offset: Any) -> Any:
        return self._arrived.pop(0) if self._arrived else offset

    async def read(self, start: Any, stop: Any) -> AsyncIterator[Any]:
        for at in range(start, stop, 1000):
            yield self._data[at : min(stop, at + 1000)]


def upstream(data: bytes, *, start: Any = None, pieces: Any = 1000, size: Any = None) -> Any:
    """``open`` of an upstream that has ``data``; from ``start``, whatever is requested, if that is set."""

    class Body:
        def __init__(self, first: Any, last: Any) -> None:
            self.start, self.size = (first if start is None else start), size
            self._rest = data[self.start : last if start is None else len(data)]

        async def read(self) -> Any:
            piece, self._rest = self._rest[:pieces], self._rest[pieces:]
            return memoryview(piece)

    @asynccontextmanager
    async def open_range(first: Any, last: Any) -> AsyncIterator[Any]:
        yield Body(first, last)

    return open_range


async def test_a_sample_is_a_short_part_at_a_place_that_depends_on_the_secret() -> None:
    """B67: nobody outside this process can tell which bytes will be compared."""
    samples = [await Sampler().take("u", DIGEST, Bytes(DATA)) for _ in range(20)]
    assert {len(sample.data) for sample in samples} == {LENGTH}
    assert [DATA[sample.start : sample.stop] for sample in samples] == [item.data for item in samples]
    assert len({sample.start for sample in samples}) > 15


async def test_asking_again_brings_no_other_place() -> None:
    """B67: else who can guess one place would ask until it comes up."""
    sampler = Sampler(b"secret")
    first = await sampler.take("u", DIGEST, Bytes(DATA))
    assert await sampler.take("u", DIGEST, Bytes(DATA)) == first
    assert await sampler.take("v", DIGEST, Bytes(DATA)) != first
    assert await sampler.take("u", OTHER, Bytes(DATA)) != first


async def test_padding_is_no_sample_while_there_is_anything_else() -> None:
    """B67: everybody can guess zeros."""
    for number in range(20):
        data = bytes(150_000) + DATA + bytes(150_000)
        sample = await Sampler(b"%d" % number).take("u", DIGEST, Bytes(data))
        assert len(set(sample.data)) >= 16


@pytest.mark.parametrize("size", [0, 1, LENGTH, SMALL])
async def test_a_small_blob_is_its_own_sample(size: Any) -> None:
    """B67: of a config nearly everything can be guessed."""
    assert await Sampler().take("u", DIGEST, Bytes(DATA[:size])) == Sample(0, DATA[:size], size)


async def test_a_sample_of_a_blob_in_flight_lies_in_what_has_arrived() -> None:
    """B13: the pull of another repository is not held up until the end."""
    sample = await Sampler().take("u", DIGEST, Bytes(DATA, [10, 11, ENOUGH, 200_000]))
    assert sample == Sample(0, DATA[:ENOUGH], len(DATA))
    sample = await Sampler().take("u", DIGEST, Bytes(DATA, [100_000]))
    assert sample.stop <= 100_000


async def test_a_blob_of_untold_size_that_ends_early_is_its_own_sample() -> None:
    blob = Bytes(DATA[:60], [59, 60])
    blob.size = None
    assert await Sampler().take("u", DIGEST, blob) == Sample(0, DATA[:60])


@pytest.mark.parametrize("start", [None, 0, 500], ids=["the part", "from the beginning", "from before"])
@pytest.mark.parametrize("pieces", [1, 64, 4096])
async def test_the_bytes_of_the_sample_prove(start: Any, pieces: Any) -> None:
    sample = Sample(1000, DATA[1000:1064])
    assert await sends(upstream(DATA, start=start, pieces=pieces), sample)


@pytest.mark.parametrize("at", [1000, 1031, 1063])
@pytest.mark.parametrize("start", [None, 0])
async def test_one_other_byte_disproves(at: Any, start: Any) -> None:
    other = DATA[:at] + bytes([DATA[at] ^ 1]) + DATA[at + 1 :]
    assert not await sends(upstream(other, start=start), Sample(1000, DATA[1000:1064]))


@pytest.mark.parametrize("length", [0, 1000, 1063])
async def test_too_few_bytes_disprove(length: Any) -> None:
    assert not await sends(upstream(DATA[:length], start=0), Sample(1000, DATA[1000:1064]))


@pytest.mark.parametrize(("size", "expected"), [(None, True), (len(DATA), True), (len(DATA) - 1, False)])
async def test_the_right_bytes_of_a_blob_of_another_size_disprove(size: Any, expected: Any) -> None:
    """B67: a part of the blob is not the blob."""
    sample = Sample(1000, DATA[1000:1064], len(DATA))
    assert await sends(upstream(DATA, size=size), sample) is expected


class Flowing(Follower):
    """A blob in flight; nothing is readable before ``arrive`` is set. ``samples`` are those noted."""

    is_verified, descriptor = False, None

    def __init__(self, data: bytes) -> None:
        self.data, self.size = data, len(data)
        self.arrive = asyncio.Event()
        self.samples: list[tuple[int, bytes]] = []

    async def wait_until_readable(self, offset: int) -> int:
        await self.arrive.wait()
        return len(self.data)

    async def read(self, start: int, stop: int) -> AsyncIterator[bytes]:
        yield self.data[start:stop]

    def mark_unread(self) -> None:
        pass

    def note_sample(self, start: int, data: bytes) -> None:
        self.samples.append((start, data))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    await world.close()


@pytest.fixture
async def possession(world: World) -> AsyncIterator[Possession]:
    possession = Possession(world.cache, world.access)
    yield possession
    await possession.close()


async def test_waiting_samples_count_as_pending_proofs(
    possession: Possession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B67: another client of the same blob is no further proof."""
    monkeypatch.setattr("regmirror.mirror.possession.PROOFS_MAX", 2)
    blob = Flowing(DATA[:1000])
    waiting = [asyncio.create_task(possession.prove(APP, digest, blob)) for digest in (DIGEST, OTHER, OTHER)]
    await asyncio.wait(waiting, timeout=0.02)
    with pytest.raises(Unavailable, match="2 proofs of possession are pending"):
        async with asyncio.timeout(1):
            await possession.prove(APP, Digest("sha256:" + "2" * 64), blob)
    assert not any(task.done() for task in waiting)
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    blob.arrive.set()
    assert not await possession.prove(APP, Digest("sha256:" + "2" * 64), blob)


async def test_the_sample_of_a_shared_proof_is_the_one_that_was_sent(
    possession: Possession, world: World
) -> None:
    """B67: the upstream has not sent the sample of the second request."""
    may_respond = asyncio.Event()

    @asynccontextmanager
    async def open_blob(*arguments: Any) -> AsyncIterator[Any]:
        await may_respond.wait()
        async with Upstream.open_blob(world.upstream, *arguments) as body:
            yield body

    world.upstream.content = DATA[:1000]
    world.upstream.open_blob = open_blob  # type: ignore[method-assign, assignment]
    blobs = [Flowing(DATA[:1000]), Flowing(DATA[:1000])]
    blobs[1].data = DATA[:500]
    proofs = []
    for blob in blobs:
        blob.arrive.set()
        proofs.append(asyncio.create_task(possession.prove(APP, DIGEST, blob)))
        await asyncio.wait(proofs, timeout=0.02)
    may_respond.set()
    assert await asyncio.gather(*proofs) == [True, True]
    assert world.upstream.requests == [("GET", DIGEST)]
    assert [blob.samples for blob in blobs] == [[(0, DATA[:1000])]] * 2
