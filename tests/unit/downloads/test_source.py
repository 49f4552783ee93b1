"""The locator of one machine."""

from __future__ import annotations

from regmirror.downloads.source import READ_TIMEOUT, Source, Spliced, UpstreamLocator
from tests.unit.downloads.scripted import DIGEST, REPOSITORY, PlannedResponse, Script


async def test_every_blob_is_fetched_from_the_upstream() -> None:
    upstream = Script([PlannedResponse()]).source
    assert await UpstreamLocator().locate(DIGEST, upstream) is upstream


def test_a_source_is_an_upstream_unless_it_says_otherwise() -> None:
    source = Source(REPOSITORY, Script([PlannedResponse()]).source.open)
    assert source.is_upstream
    assert source.read_timeout == READ_TIMEOUT


def test_spliced_bytes_are_written_unless_the_file_failed() -> None:
    assert (Spliced(5).unwritten, Spliced(5).error) == (b"", None)
