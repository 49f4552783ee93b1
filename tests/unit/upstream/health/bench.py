"""Health on a clock that a test sets."""

from typing import Any, cast

from regmirror.telemetry.events import CircuitChanged, Emit
from regmirror.upstream.health.base import HealthStateStore
from regmirror.upstream.health.monitor import Health


class Bench:
    """Health on a clock of its own."""

    def __init__(self, record: HealthStateStore, **options: Any) -> None:
        self.time = 1000.0
        self.events: list[CircuitChanged] = []
        self.changes: list[bool] = []
        self.health = Health(
            "registry.test",
            record,
            emit=cast("Emit", self.events.append),
            now=lambda: self.time,
            clock=lambda: self.time,
            changed=self.changes.append,
            **options,
        )

    def fail(self, times: int = 1) -> None:
        for _ in range(times):
            self.time += 0.1
            self.health.note_failure(0.05, "refused")
