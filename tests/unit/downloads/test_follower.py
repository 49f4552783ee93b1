"""A reader of a download, for one repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from regmirror.downloads.download import Download
from regmirror.downloads.follower import Follower
from regmirror.downloads.registry import Downloads
from regmirror.errors import UpstreamContentInvalid, UpstreamFailed
from regmirror.oci.names import Repository
from tests.unit.downloads.scripted import (
    DATA,
    DIGEST,
    REPOSITORY,
    Bench,
    PlannedResponse,
    Script,
    broken,
    read_all,
)

OTHER = Repository("other.test", "team/app")


@pytest.fixture
async def download(tmp_path: Path) -> Download:
    """A download of which all bytes are in the file, and nothing is verified."""
    download = Download(DIGEST, Script([PlannedResponse()]).source)
    (tmp_path / "bytes").write_bytes(DATA)
    download.use_descriptor(os.open(tmp_path / "bytes", os.O_RDONLY))
    download.continue_provenance(Script([PlannedResponse()]).source, 0)
    download.begin(len(DATA))
    download.advance(len(DATA))
    return download


def follow(download: Download, downloads: Downloads, repository: Repository = REPOSITORY) -> Follower:
    return Follower(download, Script([PlannedResponse()], repository=repository).source, downloads)


async def test_a_closed_follower_has_nothing_to_read(download: Download, downloads: Downloads) -> None:
    follower = follow(download, downloads)
    follower.close()
    follower.close()
    assert follower.descriptor is None
    assert not follower.is_passed_through
    assert not follower.is_verified
    assert not follower.is_foreign
    assert not follower.proves(REPOSITORY)
    follower.note_sample(0, b"abc")
    with pytest.raises(ValueError, match="closed"):
        await follower.wait_until_readable(0)
    download.end()


async def test_a_follower_reads_by_the_descriptor_and_without(
    download: Download, downloads: Downloads
) -> None:
    follower = follow(download, downloads)
    assert follower.descriptor == download.descriptor
    assert b"".join([piece async for piece in follower.read(5, 15)]) == DATA[5:15]
    assert await follower.wait_until_readable(0) == len(DATA) - 1
    follower.close()
    download.end()


async def test_unverified_bytes_of_another_upstream_are_foreign(
    download: Download, downloads: Downloads
) -> None:
    """B67."""
    own, foreign = follow(download, downloads), follow(download, downloads, OTHER)
    assert (own.is_foreign, foreign.is_foreign) == (False, True)
    download.verify()
    assert not foreign.is_foreign
    for follower in (own, foreign):
        follower.close()
    download.end()


async def test_a_failure_of_another_repository_is_followed_by_another_download(
    download: Download, downloads: Downloads, bench: Bench
) -> None:
    """B20: as long as the reader has no byte."""
    follower = follow(download, downloads, OTHER)
    download.fail(broken, str(REPOSITORY))
    download.advance(0)
    assert await read_all(follower) == DATA
    assert follower.proves(OTHER)
    await downloads.drain()
    assert bench.stored() == DATA
    follower.close()
    assert download.readers == 0
    download.end()


async def test_after_its_first_byte_a_reader_fails_with_its_download(
    download: Download, downloads: Downloads
) -> None:
    """B2: the bytes may be wrong ones."""
    follower = follow(download, downloads, OTHER)
    assert await follower.wait_until_readable(0) > 0
    download.fail(
        UpstreamContentInvalid("registry.test", "sent other content", reason="digest"), str(REPOSITORY)
    )
    with pytest.raises(UpstreamContentInvalid):
        await follower.wait_until_readable(len(DATA) - 1)
    follower.close()
    download.end()


async def test_bytes_that_were_only_compared_do_not_count_as_read(
    download: Download, downloads: Downloads
) -> None:
    follower = follow(download, downloads, OTHER)
    assert await follower.wait_until_readable(0) > 0
    follower.mark_unread()
    download.fail(broken, str(REPOSITORY))
    assert await follower.wait_until_readable(len(DATA) - 1) == len(DATA)
    follower.close()
    download.end()


async def test_another_download_of_another_size_does_not_fit(
    download: Download, downloads: Downloads
) -> None:
    """B2: the client has the headers of the first one."""
    follower = follow(download, downloads, OTHER)
    follower.size = 5
    download.advance(0)
    download.fail(broken, str(REPOSITORY))
    with pytest.raises(UpstreamFailed):
        await follower.wait_until_readable(0)
    follower.close()
    download.end()
