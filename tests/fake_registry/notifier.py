"""Waiting in a test for something that happens in a server of the same event loop."""

import asyncio
from collections.abc import Callable

TIMEOUT = 10.0  # seconds that a test waits for an event before it fails


class Notifier:
    """Wakes the tests that wait for a condition whenever something has happened."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def notify(self) -> None:
        """Wake every waiter, so that each tests its condition."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_until(
        self, condition: Callable[[], bool], timeout: float = TIMEOUT, description: str = "the condition"
    ) -> None:
        """Wait until the condition holds; each `notify` evaluates it.

        Raises AssertionError when it does not hold within `timeout` seconds.
        """
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"not within {timeout} s: {description}{self.describe()}") from None

    def describe(self) -> str:
        """Return what a failure reports besides the condition."""
        return ""
