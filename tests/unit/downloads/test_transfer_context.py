"""The defaults of the context: no limit of space, and every blob from its upstream."""

from __future__ import annotations

from regmirror.downloads.source import UpstreamLocator
from tests.unit.downloads.scripted import DIGEST, Bench


async def test_without_a_limit_every_size_is_reserved(bench: Bench) -> None:
    await bench.context.reserve(DIGEST, 10**15)
    await bench.context.reserve(DIGEST, None)


def test_the_default_source_is_the_upstream(bench: Bench) -> None:
    assert isinstance(bench.context.locator, UpstreamLocator)
