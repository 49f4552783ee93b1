"""An upstream that is a process of its own, so that it can be frozen.

It stops in the middle of the sample's layer, once, until it gets SIGUSR1.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.parts.process import Process, clean_environment
from tests.fake_registry import FakeRegistry, RecordedRequest
from tests.faults.sample import HALF, add_sample, add_small

ROOT = Path(__file__).parents[2]


class ProcessUpstream(Process):
    """The process as a test sees it."""

    @property
    def url(self) -> str:
        """The address, which is the first thing that it prints."""
        return self.output().split()[0]

    @property
    def requests(self) -> list[str]:
        """``METHOD path range`` of each request so far."""
        return self.output().splitlines()[1:]

    def gets(self, digest: str) -> list[str]:
        """The requests for this blob."""
        return [line for line in self.requests if line.startswith("GET") and digest in line]


@contextmanager
def process_upstream(directory: Path) -> Iterator[ProcessUpstream]:
    """Run it."""
    command = [sys.executable, "-m", "tests.faults.process_upstream"]
    log = directory / "upstream.log"
    process = ProcessUpstream(command, log=log, env=clean_environment(directory), cwd=ROOT)
    try:
        process.wait_ready(lambda: process.output().startswith("http") and "\n" in process.output())
        yield process
    finally:
        process.kill()


class _Registry(FakeRegistry):
    def record(self, request: RecordedRequest) -> None:
        super().record(request)
        _say(f"{request.method} {request.path} {request.headers.get('Range', '-')}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def _serve() -> None:
    registry = _Registry()
    add_small(registry)
    image = add_sample(registry)
    pause = registry.pause(after=HALF, reference=image.layer_digests[0], times=1)
    async with registry:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, pause.release)
        _say(registry.url)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve())
