"""Turns without an event loop; ``tests/contract/test_turns.py`` has what every implementation promises."""

from __future__ import annotations

from pathlib import Path

from regmirror.maintenance.turns import LocalTurns, try_turn


async def test_commands_and_servers_share_turns(tmp_path: Path) -> None:
    """B45: a command beside a server waits for its turn."""
    with try_turn(tmp_path, "collection") as is_alone:
        assert is_alone
        async with LocalTurns(tmp_path).try_turn("collection") as is_second:
            assert not is_second
    async with LocalTurns(tmp_path).try_turn("collection"):
        with try_turn(tmp_path, "collection") as is_alone:
            assert not is_alone
