"""The state of a download, and that only its own module writes it."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from regmirror.blobs.staging import DownloadState
from regmirror.downloads import download as module
from regmirror.downloads.download import PREFIX_MIN, Download
from regmirror.downloads.source import Source
from regmirror.errors import Unavailable, UpstreamNotFound
from regmirror.oci.names import Repository
from tests.unit.downloads.scripted import DIGEST, REPOSITORY, PlannedResponse, Script

OTHER = Repository("other.test", "team/app")
ABSENT = UpstreamNotFound("registry.test", "has no such blob")
MODULE = Path(module.__file__)


def source(repository: Repository = REPOSITORY) -> Source:
    return Script([PlannedResponse()], repository=repository).source


@pytest.fixture
async def download() -> Download:
    return Download(DIGEST, source())


def test_no_other_module_assigns_to_a_field_of_a_download() -> None:
    fields = {
        node.attr
        for node in ast.walk(ast.parse(MODULE.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    foreign = {
        f"{path.name}:{node.lineno} {ast.unparse(node)}"
        for path in MODULE.parent.glob("*.py")
        if path != MODULE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and node.attr in fields
        and ast.unparse(node.value) != "self"
    }
    assert foreign == set()


async def test_the_last_byte_is_withheld_until_the_verification(download: Download) -> None:
    """B2."""
    download.begin(10)
    download.advance(9)
    assert download.visible == 9
    download.advance(10)
    assert download.visible == 9
    download.verify()
    assert download.visible == 10


async def test_of_unknown_size_every_last_byte_is_withheld(download: Download) -> None:
    download.begin(None)
    assert download.visible == 0
    download.advance(5)
    assert download.visible == 4


async def test_bytes_beyond_the_stated_size_are_not_visible(download: Download) -> None:
    download.begin(10)
    download.advance(12)
    assert download.visible == 9


@pytest.mark.parametrize(
    ("limit", "visible"), [(PREFIX_MIN - 1, PREFIX_MIN - 1), (PREFIX_MIN, 2 * PREFIX_MIN)]
)
async def test_a_long_correct_prefix_proves_the_whole_blob(
    download: Download, limit: int, visible: int
) -> None:
    """B67."""
    download.continue_provenance(source(), 0)
    assert download.continue_provenance(source(OTHER), limit)
    download.begin(2 * PREFIX_MIN)
    download.advance(2 * PREFIX_MIN)
    assert download.visible_to(REPOSITORY) == limit
    assert download.visible_to(OTHER) == 0
    download.verify()
    assert download.visible_to(REPOSITORY) == visible


async def test_a_reader_whose_upstream_did_not_send_the_blob_fails(download: Download) -> None:
    download.begin(2)
    download.advance(2)
    download.verify()
    with pytest.raises(Unavailable, match="did not send the whole blob"):
        await download.wait_until_readable(0, OTHER)


async def test_a_sample_counts_while_the_provenance_is_that_of_the_current_upstream(
    download: Download,
) -> None:
    """B67."""
    assert download.add_sample(OTHER, 0, b"abc") is None
    assert not download.is_proven(OTHER)
    download.continue_provenance(source(), 0)
    assert download.add_sample(OTHER, 0, b"abc") == REPOSITORY
    assert download.is_proven(OTHER)
    assert not download.is_proven(REPOSITORY)


async def test_a_sample_that_is_not_in_the_file_proves_nothing(download: Download, tmp_path: Path) -> None:
    """B67: the file may have been truncated and written again."""
    (tmp_path / "bytes").write_bytes(b"abcdef")
    download.use_descriptor(os.open(tmp_path / "bytes", os.O_RDONLY))
    download.continue_provenance(source(), 0)
    download.add_sample(OTHER, 0, b"abc")
    third = Repository("third.test", "team/app")
    download.add_sample(third, 0, b"xyz")
    assert download.find_possessors() == {REPOSITORY, OTHER}
    download.forget_provenance()
    assert download.find_possessors() == {OTHER}
    download.end()
    assert download.descriptor == -1


async def test_a_failure_of_one_repository_is_no_response_for_another(download: Download) -> None:
    """B20."""
    download.fail(ABSENT, str(REPOSITORY))
    assert download.blames(REPOSITORY)
    assert not download.blames(OTHER)
    download.sources.reject(source(OTHER), ABSENT)
    assert download.blames(OTHER)


async def test_a_failure_that_concerns_everybody_blames_every_repository(download: Download) -> None:
    download.fail(Unavailable("no descriptors"))
    assert download.blames(OTHER)
    assert not download.is_open
    assert download.failure == "no descriptors"


async def test_wrong_bytes_are_blamed_on_the_first_sender(download: Download) -> None:
    """B20."""
    download.suspect_provenance()
    assert download.sources.suspected == "?"
    download.continue_provenance(source(), 0)
    download.continue_provenance(source(OTHER), 5)
    download.suspect_provenance()
    assert download.sources.suspected == str(REPOSITORY)


async def test_the_shared_state_restores_the_provenance(download: Download) -> None:
    download.continue_provenance(source(), 0)
    download.begin(10)
    state = download.to_state(is_flowing=True, size=10)
    other = Download(DIGEST, source(OTHER))
    other.follow_state(state, 4)
    assert (other.started, other.size, other.written) == (True, 10, 4)
    assert other.provenance.is_of(REPOSITORY)
    other.follow_state(DownloadState(flowing=True, size=10, origin=str(OTHER)), 6)
    assert other.provenance.is_of(OTHER)


async def test_the_start_is_reported_once(download: Download) -> None:
    starts: list[bool] = []
    download.when_started(lambda: starts.append(download.started))
    download.begin(None)
    download.verify()
    assert starts == [True]


async def test_the_file_stays_open_for_the_last_reader(download: Download, tmp_path: Path) -> None:
    """B17."""
    download.use_descriptor(os.open(tmp_path, os.O_RDONLY))
    download.enter(source())
    download.end()
    assert download.descriptor >= 0
    download.leave(source())
    assert download.descriptor == -1
