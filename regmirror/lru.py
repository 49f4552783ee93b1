"""A dictionary bounded in bytes, which drops the least recently used entries."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

#: Bytes of an entry without its texts: the node of the dictionary, the key's tuple, a small value.
ENTRY: Final = 500
_TEXT: Final = 64  # bytes of a str or bytes object without its characters


def weigh_texts(*texts: str | bytes) -> int:
    """Estimate the bytes in memory of an entry with these texts, rounded up."""
    return ENTRY + sum(len(text) + _TEXT for text in texts)


class Lru(Generic[K, V]):
    """At most ``limit`` bytes; ``weigh`` estimates the bytes of an entry from its key and value.

    An entry of more than ``limit`` bytes stays until the next ``put``.
    """

    def __init__(self, limit: int, weigh: Callable[[K, V], int]) -> None:
        self._limit, self._weigh = limit, weigh
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._weight = 0
        self.hits = self.misses = 0  # of ``get``

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def weight(self) -> int:
        """Bytes of all entries."""
        return self._weight

    def get(self, key: K) -> V | None:
        """The value, which is now the most recently used; None if there is none."""
        value = self._entries.get(key)
        if value is None:
            self.misses += 1
        else:
            self.hits += 1
            self._entries.move_to_end(key)
        return value

    def items(self) -> list[tuple[K, V]]:
        """A copy of all entries, the least recently used first."""
        return list(self._entries.items())

    def put(self, key: K, value: V) -> None:
        """Store the value as the most recently used, and drop others beyond the limit."""
        self.drop(key)
        self._entries[key] = value
        self._weight += self._weigh(key, value)
        while self._weight > self._limit and len(self._entries) > 1:
            self._subtract(*self._entries.popitem(last=False))

    def clear(self) -> None:
        """Drop every entry."""
        self._entries.clear()
        self._weight = 0

    def drop(self, key: K) -> None:
        """Drop the entry, if there is one."""
        old = self._entries.pop(key, None)
        if old is not None:
            self._subtract(key, old)

    def drop_where(self, is_over: Callable[[V], bool]) -> None:
        """Drop every entry for whose value ``is_over`` is true."""
        for key in [key for key, value in self._entries.items() if is_over(value)]:
            self.drop(key)

    def _subtract(self, key: K, value: V) -> None:
        self._weight -= self._weigh(key, value)
