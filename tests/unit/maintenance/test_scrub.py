"""Scrub: errors of reading and sources of a repair; ``tests/integration/test_scrub.py`` has the rest."""

from __future__ import annotations

import os
from typing import Any

import pytest

from regmirror.errors import BlobUnknown
from regmirror.maintenance.scrub import Finding, ScrubSummary
from regmirror.oci.names import Digest, Repository
from tests.unit.maintenance.world import APP, OTHER, World


async def scrub(world: World, repair: Any = None) -> tuple[ScrubSummary, list[Finding]]:
    async def fail(repository: Repository, digest: Digest) -> None:
        raise BlobUnknown("it has gone")

    findings: list[Finding] = []
    scrubber = world.toolkit.scrubber(world.events.append, repair or fail, 0)
    return await scrubber.scrub(findings.append), findings


async def test_intact_content_is_counted(world: World) -> None:
    await world.add_blob(b"blob")
    await world.add_manifest("{}")
    summary, findings = await scrub(world)
    assert (summary, findings) == (ScrubSummary(checked=2, bytes=6), [])


@pytest.mark.parametrize(("call", "why"), [("open", "cannot be opened"), ("pread", "cannot be read")])
async def test_a_file_that_fails_is_quarantined(
    world: World, call: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B47."""
    digest = await world.add_blob(b"blob")
    real = getattr(os, call)

    def fail(target: Any, *args: Any, **options: Any) -> Any:
        if call == "open" and target != world.toolkit.store.path(digest):
            return real(target, *args, **options)
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        summary, (finding,) = await scrub(world)
    assert (summary.corrupt, summary.repaired) == (1, 0)
    assert finding == Finding(digest, 4, f"it {why}: Input/output error", is_repaired=False)
    assert not world.toolkit.store.exists(digest)


async def test_a_blob_that_was_removed_meanwhile_is_no_finding(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = await world.add_blob(b"blob")
    rows = await world.toolkit.inventory.blobs_after("", 10)
    await world.toolkit.remover.remove([digest], "evicted")
    pages = [rows]

    async def blobs_after(last: str, limit: int) -> list[Any]:
        return pages.pop() if pages else []

    monkeypatch.setattr(world.toolkit.inventory, "blobs_after", blobs_after)
    assert (await scrub(world))[1] == []


async def test_a_repair_tries_the_next_repository(world: World) -> None:
    """B47."""
    digest = await world.add_blob(b"blob")
    await world.metadata.link(OTHER, digest)
    world.toolkit.store.path(digest).write_bytes(b"blot")
    asked = []

    async def repair(repository: Repository, wanted: Digest) -> None:
        asked.append(repository)
        if len(asked) == 1:
            raise KeyError(repository.upstream)
        world.toolkit.store.path(wanted).write_bytes(b"blob")

    _, (finding,) = await scrub(world, repair)
    assert finding.is_repaired
    assert {*asked} == {APP, OTHER}
