"""Which process does a maintenance task: one at a time on each store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final, Protocol

from regmirror.errors import RegmirrorError
from regmirror.files import locked

COLLECTION: Final = "collection"
EVICTION: Final = "eviction"


class Turns(Protocol):
    """Mutual exclusion between all processes that use a store."""

    def try_turn(self, task: str) -> AbstractAsyncContextManager[bool]:
        """Whether this process may do ``task``; if so, no other process does it until the block ends.

        Does not wait. Raises TurnUnavailable.
        """
        ...


class TurnUnavailable(RegmirrorError):
    """Whether another process does the task cannot be determined."""


class LocalTurns:
    """Turns between the processes of one machine, by a lock file for each task below ``root``."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @asynccontextmanager
    async def try_turn(self, task: str) -> AsyncIterator[bool]:
        with try_turn(self._root, task) as is_alone:
            yield is_alone


@contextmanager
def try_turn(root: Path, task: str) -> Iterator[bool]:
    """``LocalTurns.try_turn`` for callers without an event loop."""
    path = root / f"{task}.lock"
    with ExitStack() as stack:
        try:
            is_alone = stack.enter_context(locked(path))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise TurnUnavailable(f"the lock {path} cannot be used: {reason}; check its owner") from error
        yield is_alone
