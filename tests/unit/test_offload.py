"""Large documents are parsed in a thread, small ones on the event loop."""

from __future__ import annotations

import threading

import pytest

from regmirror.offload import LARGE, run_by_size


@pytest.mark.parametrize(("size", "is_in_loop"), [(0, True), (LARGE - 1, True), (LARGE, False)])
async def test_the_size_decides_where_the_work_runs(size: int, is_in_loop: bool) -> None:
    """B100."""
    thread = await run_by_size(size, threading.current_thread)
    assert (thread is threading.main_thread()) is is_in_loop


@pytest.mark.parametrize("size", [0, LARGE])
async def test_arguments_results_and_errors_are_passed(size: int) -> None:
    def divide(one: int, *, by: int) -> float:
        return one / by

    assert await run_by_size(size, divide, 6, by=3) == 2
    with pytest.raises(ZeroDivisionError):
        await run_by_size(size, divide, 6, by=0)
