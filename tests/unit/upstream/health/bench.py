"""Health on a clock that a test sets."""

from regmirror.upstream.health.monitor import Health


class Bench:
    """Health on a clock of its own."""

    def __init__(self, record, **options):
        self.time, self.events, self.changes = 1000.0, [], []
        self.health = Health(
            "registry.test",
            record,
            emit=self.events.append,
            now=lambda: self.time,
            clock=lambda: self.time,
            changed=self.changes.append,
            **options,
        )

    def fail(self, times=1):
        for _ in range(times):
            self.time += 0.1
            self.health.note_failure(0.05, "refused")
