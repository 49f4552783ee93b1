"""Lists in memory as the JSON text that they are answered with: one element a line.

The text takes a tenth of the objects, and a page of it is cut out without reading the rest.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Page:
    """Some elements, separated by commas; ``last`` is the last of them if more follow."""

    elements: bytes
    last: str | None = None


@dataclass(frozen=True, slots=True)
class JsonList:
    """``text`` has an element in each line; those that come in pages are sorted texts."""

    text: bytes = b""

    @classmethod
    def of(cls, items: Iterable[Any]) -> JsonList:
        return cls(b"\n".join(json.dumps(item, separators=(",", ":")).encode() for item in items))

    def __bool__(self) -> bool:
        return bool(self.text)

    def page(self, last: str | None = None, limit: int | None = None) -> Page:
        """At most ``limit`` elements after ``last``, which need not be one of them."""
        start = 0 if last is None else self._find_after(last)
        stop = len(self.text) if limit is None else self._skip(start, limit)
        lines = self.text[start:stop].removesuffix(b"\n")
        has_more = bool(lines) and stop < len(self.text)
        following = json.loads(lines.rpartition(b"\n")[2]) if has_more else None
        return Page(lines.replace(b"\n", b","), following)

    def select(self, key: str, wanted: Collection[str]) -> JsonList:
        """The elements that have one of the ``wanted`` values under ``key``."""
        marks = [json.dumps(value).encode() for value in wanted]
        found = (line for line in self.text.splitlines() if any(mark in line for mark in marks))
        return JsonList(b"\n".join(line for line in found if json.loads(line).get(key) in wanted))

    def _find_after(self, last: str) -> int:
        """Where the first element begins that comes after ``last``, by halves."""
        low, high = 0, len(self.text)
        while low < high:
            middle = (low + high) // 2
            start = max(low, self.text.rfind(b"\n", low, middle) + 1)
            stop = self.text.find(b"\n", middle)
            stop = len(self.text) if stop < 0 else stop
            if json.loads(self.text[start:stop]) > last:
                high = start
            else:
                low = stop + 1
        return low

    def _skip(self, start: int, count: int) -> int:
        """Where the element begins that is ``count`` after the one at ``start``."""
        for _ in range(count):
            start = self.text.find(b"\n", start) + 1
            if not start:
                return len(self.text)
        return start
