"""What an upstream sends of a blob stays within the part that it announced."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from regmirror.errors import UpstreamContentInvalid, UpstreamFailed
from regmirror.upstream.content import BlobBody, range_of


@dataclass
class Moved:
    count: int


@dataclass
class PlannedResponse:
    """The response of an upstream, whose body comes in ``pieces``."""

    status: int
    headers: dict[str, str]
    pieces: list[bytes] = field(default_factory=list)
    host: str = "registry.test"

    async def read(self) -> Any:
        return self.pieces.pop(0) if self.pieces else b""

    async def splice(self, move: Any) -> Any:
        return Moved(len(self.pieces.pop(0))) if self.pieces else None


def open_body(reply: Any, offset: int = 0) -> Any:
    return BlobBody(
        "registry.test", reply, range_of("registry.test", reply, offset), report=lambda count: None
    )


ANNOUNCED = [
    PlannedResponse(206, {"Content-Range": "bytes 10-19/*"}),
    PlannedResponse(206, {"Content-Range": "bytes 10-19/100"}),
]


@pytest.mark.parametrize("way", ["read", "splice"])
@pytest.mark.parametrize("response", ANNOUNCED, ids=["size unknown", "size known"])
async def test_a_part_that_goes_on_beyond_its_end_is_rejected(response: PlannedResponse, way: str) -> None:
    """B5, B40: also where the bytes do not pass through this program."""
    body = open_body(PlannedResponse(206, response.headers, [b"12345", b"678901"]), 10)
    take = body.read if way == "read" else lambda: body.splice(None)
    await take()
    with pytest.raises(UpstreamContentInvalid, match="more than"):
        await take()


async def test_a_part_of_a_blob_of_unknown_size_that_ends_early_is_not_whole() -> None:
    """B5: its end was announced."""
    body = open_body(PlannedResponse(206, {"Content-Range": "bytes 10-19/*"}, [b"12345"]), 10)
    await body.read()
    with pytest.raises(UpstreamFailed, match="after 15 of 20"):
        await body.read()


async def test_a_part_that_ends_where_it_was_to_end_is_accepted() -> None:
    body = open_body(PlannedResponse(206, {"Content-Range": "bytes 10-19/20"}, [b"1234567890"]), 10)
    assert (await body.read(), await body.read()) == (b"1234567890", b"")
    assert (body.start, body.size) == (10, 20)
