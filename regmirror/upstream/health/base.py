"""The contract of a store for one upstream's circuit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from regmirror.upstream.health.circuit import Circuit

#: A pure function from one circuit to the next; returns its argument when nothing changes.
Transition = Callable[[Circuit], Circuit]


class HealthStateStore(Protocol):
    """One upstream's circuit, shared by every process that uses the same store.

    No method raises or waits for I/O that can hang: health state is advisory, and a store that
    fails behaves as if it belonged to this process alone.
    """

    #: Called with the new circuit after each change that this process has made.
    on_change: Callable[[Circuit], None]

    def read(self) -> Circuit:
        """The current circuit."""
        ...

    def change(self, transition: Transition) -> tuple[Circuit, Circuit]:
        """Apply ``transition`` and return the circuits before and after it.

        They are the same object if nothing changed; then nothing is written.
        """
        ...

    def close(self) -> None:
        """Release files. Later changes stay in this process."""
        ...
