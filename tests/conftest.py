"""What most tests need: an upstream, a mirror in front of it, and a place for its files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests.fake_registry import FakeRegistry
from tests.mirror_fixture import NAME, InProcessMirror, run_mirror

StartMirror = Callable[..., Awaitable[InProcessMirror]]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long tests out unless ``-m`` names them.

    Not in ``addopts``: any other ``-m`` of the command line would take its place.
    """
    if "soak" in config.option.markexpr:
        return
    long = [item for item in items if item.get_closest_marker("soak")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


@pytest.fixture(autouse=True)
def fresh_log() -> Iterator[None]:
    """A command that ran in this process leaves no log behind that writes to its standard error."""
    yield
    structlog.reset_defaults()


@pytest.fixture
async def upstream() -> AsyncIterator[FakeRegistry]:
    """An upstream registry that asks nobody who he is; mirrors know it as ``registry.test``."""
    async with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """The mirror's storage; two mirrors that are started on it are workers of one."""
    return tmp_path / "data"


@pytest.fixture
async def start_mirror(upstream: FakeRegistry, storage: Path) -> AsyncIterator[StartMirror]:
    """A function that starts a mirror, in front of ``upstream`` unless told otherwise.

    ``start_mirror(upstreams={...}, path=…, freshness={"tag_max_age": "1m"})``: see ``run_mirror``.
    """
    async with AsyncExitStack() as stack:

        async def start(
            registries: Mapping[str, FakeRegistry | str] | None = None,
            path: Path = storage,
            **settings: Any,
        ) -> InProcessMirror:
            return await stack.enter_async_context(
                run_mirror(path, registries or {NAME: upstream}, **settings)
            )

        yield start


@pytest.fixture
async def mirror(start_mirror: StartMirror) -> InProcessMirror:
    """A mirror in front of ``upstream``, with the default configuration."""
    return await start_mirror()
