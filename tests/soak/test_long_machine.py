"""B8, B42, B43: more and longer stories of the store than the suite has time for, new ones each time."""

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.unit.blobs.test_store_machine import StoreMachine

EXAMPLES = 300
STEPS = 60


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_many_stories_of_the_store(capsys: pytest.CaptureFixture[str]) -> None:
    """B7, B8, B40, B42, B43."""
    began = time.monotonic()
    chosen = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(StoreMachine, settings=chosen)
    seconds = time.monotonic() - began
    assert seconds < 900
    with capsys.disabled():
        print(f"\n{EXAMPLES} stories of up to {STEPS} steps in {seconds:.0f} s")  # noqa: T201  # the figures
