"""Processes on one storage directory, without an application."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from regmirror.downloads.registry import Downloads
from tests.unit.downloads.scripted import FULL, Bench, OpenDownloads


@pytest.fixture
def bulk() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def bench(tmp_path: Path, bulk: ThreadPoolExecutor) -> Bench:
    return Bench(tmp_path, bulk)


@pytest.fixture
def other(tmp_path: Path, bulk: ThreadPoolExecutor) -> Bench:
    """The parts of another process on the same storage."""
    return Bench(tmp_path, bulk)


@pytest.fixture
async def downloads(bench: Bench) -> AsyncIterator[Downloads]:
    downloads = Downloads(bench.context)
    yield downloads
    await downloads.close()


@pytest.fixture
async def elsewhere(other: Bench) -> AsyncIterator[Downloads]:
    """The downloads of another process on the same storage."""
    downloads = Downloads(other.context)
    yield downloads
    await downloads.close()


@pytest.fixture
async def open_downloads() -> AsyncIterator[OpenDownloads]:
    """A function that opens the downloads of a bench, whose context may be changed."""
    opened: list[Downloads] = []

    def open_one(bench: Bench, **changes: Any) -> Downloads:
        bench.context = replace(bench.context, **changes)
        opened.append(Downloads(bench.context))
        return opened[-1]

    yield open_one
    for downloads in opened:
        await downloads.close()


@pytest.fixture
def full_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A function that lets so many bytes be written, and nothing more until it is called again."""
    real = os.pwrite

    def let(allowed: int) -> None:
        left = [allowed]

        def pwrite(descriptor: int, data: bytes, offset: int) -> int:
            data = bytes(data)
            if data[:1] == b"{":  # a state file
                return real(descriptor, data, offset)
            if not left[0]:
                raise FULL
            count = real(descriptor, data[: left[0]], offset)
            left[0] -= count
            return count

        monkeypatch.setattr(os, "pwrite", pwrite)

    return let
