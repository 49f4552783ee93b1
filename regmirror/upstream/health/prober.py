"""Probes of an upstream with an open circuit, made without any client request.

While the circuit is open, one process sends one probe in each interval. A hanging probe does not
delay the next one, so a recovered upstream is noticed at once, and so is one that needs ten seconds
for each response.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from regmirror.upstream.health.monitor import Health

POLL_INTERVAL: Final = 0.2  # seconds between reads of the circuit, which another process may close


class Prober:
    """Runs while the circuit is open. ``probe`` makes one request, records its outcome, never raises.

    With ``is_off`` nothing is probed; another process that is not offline may still probe.
    """

    def __init__(self, health: Health, probe: Callable[[], Awaitable[None]]) -> None:
        self._health, self._probe = health, probe
        self._watch: asyncio.Task[None] | None = None
        self._probes: set[asyncio.Future[None]] = set()
        self.is_off = False

    def start(self) -> None:
        """Watch the circuit until it closes. Idempotent."""
        if not self.is_off and (self._watch is None or self._watch.done()):
            self._watch = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Cancel the watch and every probe in flight."""
        self.is_off = True
        tasks = [*self._probes, *([self._watch] if self._watch else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        while not self.is_off and self._health.is_open():
            if self._health.lease_probe():
                task = asyncio.ensure_future(self._probe())
                self._probes.add(task)
                task.add_done_callback(self._probes.discard)
            await asyncio.sleep(POLL_INTERVAL)
