"""Every listener handles every event, even if another listener fails."""

from __future__ import annotations

from regmirror.telemetry.events import Event, NotStored, to_all


def test_a_log_that_cannot_be_written_fails_nothing() -> None:
    """B44: a log on a full disk must not fail the pull that is logged."""
    handled: list[Event] = []

    def fail(event: Event) -> None:
        raise OSError(28, "No space left on device")

    event = NotStored("disk", "No space left on device")
    to_all(handled.append, fail, handled.append)(event)
    assert handled == [event, event]
