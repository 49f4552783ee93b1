"""Commands change the store alone, on a database that can be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from regmirror.cli import store_access
from regmirror.cli.context import Context
from regmirror.cli.store_access import change_store, check_database
from regmirror.errors import RegmirrorError
from regmirror.maintenance.news import InvalidationMarker
from regmirror.maintenance.toolkit import Toolkit
from regmirror.maintenance.turns import try_turn
from regmirror.metadata.database import DatabaseFailed
from regmirror.metadata.reports import StoreUnreadable


async def do_nothing(toolkit: Toolkit) -> None:
    """Work that changes nothing."""


def test_a_store_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreUnreadable, match="there is no store"):
        check_database(tmp_path / "data")


@pytest.mark.parametrize("is_dry", [True, False])
def test_servers_are_notified_of_changes_only(context: Context, root: Path, is_dry: bool) -> None:
    marker = InvalidationMarker(root)
    change_store(context.load(), do_nothing, is_dry=is_dry)
    assert marker.has_changed() is not is_dry


def test_only_work_with_a_task_waits_for_its_turn(
    context: Context, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_access, "LOCK_TIMEOUT", 0.1)
    with try_turn(root, "collection") as is_alone:
        assert is_alone
        change_store(context.load(), do_nothing, tasks=())
        with pytest.raises(RegmirrorError, match=r"another process is doing maintenance in .*; try again"):
            change_store(context.load(), do_nothing)


def test_a_failed_database_is_one_sentence(context: Context) -> None:
    async def fail(toolkit: Toolkit) -> None:
        raise DatabaseFailed("disk I/O error")

    with pytest.raises(RegmirrorError, match="the database cannot be used: disk I/O error"):
        change_store(context.load(), fail)
