"""A bounded dictionary: what was used longest ago goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Lru(Generic[K, V]):
    """At most ``limit`` of whatever ``weigh`` measures (by default: one for each entry)."""

    def __init__(self, limit: int, weigh: Callable[[V], int] = lambda _: 1) -> None:
        self._limit, self._weigh = limit, weigh
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._weight = 0
        self.hits = self.misses = 0  # of ``get``, since it was made

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """The value, which thereby counts as used."""
        value = self._entries.get(key)
        if value is None:
            self.misses += 1
        else:
            self.hits += 1
            self._entries.move_to_end(key)
        return value

    def items(self) -> list[tuple[K, V]]:
        """Everything at this moment, what was used longest ago first."""
        return list(self._entries.items())

    def put(self, key: K, value: V) -> None:
        self.drop(key)
        self._entries[key] = value
        self._weight += self._weigh(value)
        while self._weight > self._limit and len(self._entries) > 1:
            _, old = self._entries.popitem(last=False)
            self._weight -= self._weigh(old)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._weight = 0

    def drop(self, key: K) -> None:
        """Forget the entry, if there is one."""
        old = self._entries.pop(key, None)
        if old is not None:
            self._weight -= self._weigh(old)
