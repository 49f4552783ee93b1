"""The walks drawn in ``docs/architecture.md`` are those that requests take."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from regmirror.telemetry.events import RequestServed
from tests.fake_registry import FakeRegistry
from tests.mirror_fixture import InProcessMirror
from tests.test_architecture import ROWS
from tests.walks import Walk

DOCUMENT = Path(__file__).parents[2] / "docs" / "architecture.md"
LOWEST = set(ROWS[-1])


def drawn(walk: str) -> list[str]:
    """The modules that the document draws for a walk."""
    text = DOCUMENT.read_text(encoding="utf-8")
    found = re.search(rf"^### {walk}\n.*?^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found, f"docs/architecture.md draws no walk '{walk}'"
    return [line.split()[0].replace("/", ".") for line in found[1].splitlines() if line.strip()]


async def pull(mirror: InProcessMirror, path: str) -> None:
    """Request it, and wait until what the request started has ended."""
    served = len(mirror.events.of(RequestServed))
    assert (await mirror.get(path)).status == 200
    await mirror.events.wait_for(RequestServed, served + 1)
    if tasks := mirror.worker._resources.downloads._tasks:  # ``drain`` itself would be traced
        await asyncio.wait(tasks)


@pytest.mark.parametrize("walk", ["A cold manifest", "A manifest hit", "A cold blob", "A warm blob"])
async def test_a_request_passes_through_the_modules_that_are_drawn(
    walk: str, mirror: InProcessMirror, upstream: FakeRegistry
) -> None:
    image = upstream.add_image("team/app", "1", [b"one"])
    other = upstream.add_image("team/other", "1", [b"another"])
    await pull(mirror, "/v2/team/other/manifests/1")  # connections and threads exist from now on
    await pull(mirror, f"/v2/team/other/blobs/{other.layer_digests[0]}")
    path = f"/v2/team/app/{'manifests/1' if 'manifest' in walk else f'blobs/{image.layer_digests[0]}'}"
    if "cold" not in walk:
        await pull(mirror, path)
    with Walk() as found:
        await pull(mirror, path)
    passed = [module for module in found.modules if module.partition(".")[0] not in LOWEST]
    assert sorted(passed) == sorted(drawn(walk))
