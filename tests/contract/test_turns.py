"""Turns: what every implementation promises. One process at a time does a maintenance task."""

from __future__ import annotations

from pathlib import Path

import pytest

from regmirror.maintenance.turns import LocalTurns, Turns, TurnUnavailable


@pytest.fixture
def processes(tmp_path: Path) -> tuple[Turns, Turns]:
    """The turns of two processes on one store."""
    return LocalTurns(tmp_path), LocalTurns(tmp_path)


async def test_a_task_is_done_by_one_process_at_a_time(processes: tuple[Turns, Turns]) -> None:
    one, other = processes
    async with one.try_turn("collection") as is_first, other.try_turn("collection") as is_second:
        assert (is_first, is_second) == (True, False)


async def test_a_turn_ends_with_its_block(processes: tuple[Turns, Turns]) -> None:
    one, other = processes
    for turns in (one, other, one):
        async with turns.try_turn("collection") as is_alone:
            assert is_alone


async def test_a_turn_ends_with_an_exception(processes: tuple[Turns, Turns]) -> None:
    one, other = processes
    with pytest.raises(ZeroDivisionError):
        async with one.try_turn("collection"):
            raise ZeroDivisionError
    async with other.try_turn("collection") as is_alone:
        assert is_alone


async def test_a_process_without_the_turn_does_not_end_it(processes: tuple[Turns, Turns]) -> None:
    one, other = processes
    async with one.try_turn("collection"):
        for _ in range(2):
            async with other.try_turn("collection") as is_alone:
                assert not is_alone


async def test_tasks_have_turns_of_their_own(processes: tuple[Turns, Turns]) -> None:
    one, other = processes
    async with one.try_turn("collection") as is_first, other.try_turn("scrub") as is_second:
        assert is_first
        assert is_second


async def test_an_error_of_the_task_is_raised_as_it_is(processes: tuple[Turns, Turns]) -> None:
    """An OSError of the task is none of the lock."""
    one, _ = processes
    with pytest.raises(FileNotFoundError):
        async with one.try_turn("collection"):
            raise FileNotFoundError


async def test_a_turn_that_cannot_be_determined_is_an_error(tmp_path: Path) -> None:
    """B47: the message names the lock."""
    (tmp_path / "scrub.lock").mkdir()
    with pytest.raises(TurnUnavailable, match=r"scrub\.lock cannot be used: is a directory"):
        async with LocalTurns(tmp_path).try_turn("scrub"):
            pass
