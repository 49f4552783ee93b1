"""Listeners are told of everything, whatever becomes of one of them."""

from __future__ import annotations

from regmirror.telemetry.events import NotStored, to_all


def test_a_log_that_cannot_be_written_stops_nothing():
    """B44: a log on a full disk must not fail the pull that it would tell of."""
    heard = []

    def fail(event):
        raise OSError(28, "No space left on device")

    event = NotStored("disk", "No space left on device")
    to_all(heard.append, fail, heard.append)(event)
    assert heard == [event, event]
