"""How much space a download reserves, and when (B40)."""

from __future__ import annotations

import pytest

from regmirror.blobs.base import InsufficientSpace
from regmirror.downloads.space_reservation import STEP_MAX, STEP_MIN, SpaceReservation, reserve_nothing
from regmirror.oci.names import Digest
from tests.unit.downloads.scripted import DIGEST


class Space:
    """Counts what is reserved, up to ``limit`` bytes."""

    def __init__(self, limit: int = 10**12) -> None:
        self.limit = limit
        self.requested: list[int | None] = []

    async def reserve(self, digest: Digest, size: int | None) -> None:
        self.requested.append(size)
        if (size or 0) > self.limit:
            raise InsufficientSpace("quota", "storage.max_size is reached")


async def test_a_known_size_is_reserved_as_a_whole() -> None:
    space = Space()
    reservation = SpaceReservation(space.reserve, DIGEST)
    assert not reservation.covers(1_000, 0)
    await reservation.extend(1_000, 0)
    assert reservation.covers(1_000, 5_000)
    assert reservation.limit(1_000) == 1_001  # one byte more shows that the body is too long
    assert reservation.limit(None) is None
    assert space.requested == [1_000]


async def test_of_an_unknown_size_the_next_step_is_reserved() -> None:
    space = Space()
    reservation = SpaceReservation(space.reserve, DIGEST)
    await reservation.extend(None, 0)
    assert reservation.covers(None, 0)
    assert not reservation.covers(None, 1)
    await reservation.extend(None, 1)
    assert reservation.limit(None) == 1 + STEP_MIN
    large = 16 * STEP_MAX
    await reservation.extend(None, large)
    assert reservation.limit(None) == large + STEP_MAX
    assert space.requested == [None, 1 + STEP_MIN, large + STEP_MAX]


async def test_a_size_that_becomes_known_is_reserved() -> None:
    reservation = SpaceReservation(reserve_nothing, DIGEST)
    await reservation.extend(None, 10)
    assert not reservation.covers(1_000, 10)


async def test_without_room_for_a_step_the_needed_bytes_are_reserved() -> None:
    space = Space(limit=100)
    reservation = SpaceReservation(space.reserve, DIGEST)
    await reservation.extend(None, 100)
    assert reservation.limit(None) == 100
    with pytest.raises(InsufficientSpace):
        await reservation.extend(None, 101)
