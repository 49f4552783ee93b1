"""Finding out that an upstream is well again, with no client asking.

While the circuit is open, one process an interval asks. The answer may take as long as any
other: a probe that hangs does not keep the next one from being made, so that an upstream that
came back is noticed at once, and one that needs ten seconds for each answer as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from regmirror.upstream.health.monitor import Health

LOOK: Final = 0.2  # seconds between looks at the record, which another process may change


class Prober:
    """Runs while the circuit is open. ``probe`` asks once, notes what came of it, raises nothing.

    With ``is_off`` nothing is probed: another process may, that is not offline.
    """

    def __init__(self, health: Health, probe: Callable[[], Awaitable[None]]) -> None:
        self._health, self._probe = health, probe
        self._watch: asyncio.Task[None] | None = None
        self._probes: set[asyncio.Task[None]] = set()
        self.is_off = False

    def start(self) -> None:
        """Watch the circuit until it is closed, unless that is being done."""
        if not self.is_off and (self._watch is None or self._watch.done()):
            self._watch = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        self.is_off = True
        tasks = [*self._probes, *([self._watch] if self._watch else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        while not self.is_off and self._health.is_open():
            if self._health.claim_probe():
                task = asyncio.get_running_loop().create_task(_call(self._probe))
                self._probes.add(task)
                task.add_done_callback(self._probes.discard)
            await asyncio.sleep(LOOK)


async def _call(probe: Callable[[], Awaitable[None]]) -> None:
    await probe()
