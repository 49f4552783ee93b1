"""Fixtures of most tests: an upstream, a mirror in front of it, and its storage."""

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
    """Reset logging, so that no log writes to the standard error of an earlier command."""
    yield
    structlog.reset_defaults()


@pytest.fixture
async def upstream() -> AsyncIterator[FakeRegistry]:
    """An upstream registry without authentication; mirrors know it as ``registry.test``."""
    async with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """The mirror's storage; two mirrors that are started on it are workers of one."""
    return tmp_path / "data"


@pytest.fixture
async def start_mirror(upstream: FakeRegistry, storage: Path) -> AsyncIterator[StartMirror]:
    """A function that starts a mirror, in front of ``upstream`` by default.

    ``start_mirror(path=…, freshness={"tag_max_age": "1m"})``; ``run_mirror`` has the arguments.
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
