"""A gate that delays a response until the test opens it."""

import asyncio

from tests.fake_registry.notifier import TIMEOUT, Notifier


class Gate:
    """Requests wait here until the test releases them; once released it stays open.

    arrived counts all that ever came, waiting those that are here now.
    """

    def __init__(self) -> None:
        self.arrived = 0
        self.waiting = 0
        self._open = asyncio.Event()
        self._arrivals = Notifier()

    async def wait(self) -> None:
        """The server's side: wait for the release, or until the client leaves."""
        self.arrived += 1
        self.waiting += 1
        self._arrivals.notify()
        try:
            await self._open.wait()
        finally:
            self.waiting -= 1
            self._arrivals.notify()

    async def wait_for_arrivals(self, count: int = 1, timeout: float = TIMEOUT) -> None:
        """Wait until `count` requests have come here; AssertionError after `timeout` seconds."""
        description = f"{count} requests at {self!r}"
        await self._arrivals.wait_until(lambda: self.arrived >= count, timeout, description)

    async def wait_until_empty(self, timeout: float = TIMEOUT) -> None:
        """Wait until no request waits here, whether released or aborted; AssertionError after `timeout`."""
        await self._arrivals.wait_until(lambda: self.waiting == 0, timeout, f"no request at {self!r}")

    def release(self) -> None:
        """Let all requests pass, now and later."""
        self._open.set()

    @property
    def is_open(self) -> bool:
        return self._open.is_set()

    def __repr__(self) -> str:
        state = "open" if self.is_open else f"{self.waiting} waiting"
        return f"<{type(self).__name__} {state}>"
