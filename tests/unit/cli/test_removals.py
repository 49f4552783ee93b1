"""``gc``, ``evict`` and ``purge`` print what they remove; a dry run removes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from regmirror.blobs.local import LocalBlobStore
from regmirror.cli import removals, store_access
from regmirror.cli.context import Context
from regmirror.errors import RegmirrorError
from regmirror.maintenance.turns import try_turn
from regmirror.oci.names import Digest
from tests.unit.cli.conftest import LAYER


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def is_stored(root: Path) -> bool:
    return LocalBlobStore(root).exists(Digest.of(LAYER))


def test_nothing_is_collected_while_everything_is_referenced(
    context: Context, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    removals.collect_garbage(replace(context, json=False), is_dry=False)
    assert capsys.readouterr().out == "Nothing to remove.\n"
    assert is_stored(root)


@pytest.mark.parametrize("is_dry", [True, False])
def test_eviction_removes_content_unless_it_is_a_dry_run(
    context: Context, root: Path, capsys: pytest.CaptureFixture[str], is_dry: bool
) -> None:
    removals.evict_content(context, 0, is_dry=is_dry)
    found = printed(capsys)
    assert found["dry_run"] is is_dry
    assert Digest.of(LAYER) in [item["digest"] for item in found["removed"]]
    assert found["count"] == len(found["removed"])
    assert is_stored(root) is is_dry


def test_people_get_a_table_and_a_summary(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    removals.evict_content(replace(context, json=False), 0, is_dry=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["KIND", "DIGEST", "SIZE", "REPOSITORY", "WHY"]
    assert "would be removed" in lines[-1]


def test_eviction_without_a_limit_needs_a_size(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGMIRROR_STORAGE__MIN_FREE", "0")
    with pytest.raises(RegmirrorError, match="give the size to shrink to with --to"):
        removals.evict_content(context, None, is_dry=False)


def test_eviction_to_the_configured_limits_removes_nothing_below_them(
    context: Context, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGMIRROR_STORAGE__MIN_FREE", "1")
    removals.evict_content(context, None, is_dry=False)
    assert printed(capsys)["removed"] == []


@pytest.mark.parametrize("task", ["eviction", "collection"])
def test_eviction_waits_for_the_maintenance_of_a_server(
    context: Context, root: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    monkeypatch.setattr(store_access, "LOCK_TIMEOUT", 0.1)
    with try_turn(root, task) as is_alone:
        assert is_alone
        with pytest.raises(RegmirrorError, match="another process is doing maintenance"):
            removals.evict_content(context, 0, is_dry=False)


@pytest.mark.parametrize("what", ["alpine:3", "docker.io/library/*", str(Digest.of(LAYER))])
def test_purge_removes_an_image_a_repository_or_a_digest(
    context: Context, root: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    removals.purge_content(context, what)
    assert Digest.of(LAYER) in [item["digest"] for item in printed(capsys)["removed"]]
    assert not is_stored(root)


@pytest.mark.parametrize("what", ["nope", "ghcr.io/*", str(Digest.of(b"x"))])
def test_purge_of_something_that_is_not_cached_is_an_error(context: Context, what: str) -> None:
    with pytest.raises(RegmirrorError, match="nothing cached matches"):
        removals.purge_content(context, what)


def test_a_blob_that_is_being_read_is_not_purged(context: Context, root: Path) -> None:
    blob = LocalBlobStore(root).open(Digest.of(LAYER))
    assert blob is not None
    with pytest.raises(RegmirrorError, match="a client is reading it; try again later"):
        removals.purge_content(context, str(Digest.of(LAYER)))
    blob.close()
    assert is_stored(root)
