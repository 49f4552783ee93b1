"""Marks the suite, leaves it out where it cannot run, and provides a second host with an upstream on it."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.e2e.parts.networks import SecondHost, second_host
from tests.fake_registry import FakeRegistry
from tests.faults.far_registry import FarRegistry

PROGRAMS = ("dnsmasq", "findmnt", "ip", "iptables-legacy", "mkfs.ext4", "mount", "umount")
SBIN = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"


def find_missing_requirement() -> str:
    """Return why faults cannot be made here, or nothing."""
    if os.geteuid() != 0:
        return "real faults need root"
    missing = [program for program in PROGRAMS if not shutil.which(program, path=SBIN)]
    return f"not installed: {', '.join(missing)} (see scripts/install-real-parts)" if missing else ""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark every test in this directory."""
    item.add_marker("e2e")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Leave the suite out where it cannot run, but never silently in CI."""
    if missing := find_missing_requirement():
        if os.environ.get("CI"):
            pytest.fail(f"CI runs the tests of faults, but {missing}", pytrace=False)
        pytest.skip(missing)


@pytest.fixture
def host() -> Iterator[SecondHost]:
    """Another host, joined to this one by a cable."""
    with second_host() as joined:
        yield joined


@pytest.fixture
async def far(host: SecondHost) -> AsyncIterator[FakeRegistry]:
    """An upstream that runs on the other host."""
    async with FarRegistry(host) as registry:
        yield registry
