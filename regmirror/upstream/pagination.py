"""Pagination of lists by ``Link: </v2/…>; rel="next"`` (RFC 8288), and the memory that lists use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from yarl import URL

from regmirror.errors import UpstreamContentInvalid, UpstreamFailed
from regmirror.upstream.content import read_json

PAGES_MAX: Final = 1000
LIST_MAX: Final = 8 * 1024 * 1024  # bytes of all pages; some registries send every tag on the first one
LISTS_MAX: Final = 4 * LIST_MAX  # bytes of all lists of one upstream that are being read
_LINK: Final = re.compile(r"<([^<>]*)>([^<]*)")
_NEXT: Final = re.compile(r""";\s*rel\s*=\s*"?(?:[^";]*\s)?next(?:\s[^";]*)?"?\s*(?:[;,]|$)""", re.IGNORECASE)


@dataclass
class ListBytes:
    """The bytes of all lists of one upstream that are being read."""

    upstream: str
    total: int = 0

    @contextmanager
    def reading(self) -> Iterator[OneList]:
        """Account for one list, whose pages stay in memory until its end."""
        one = OneList(self)
        try:
            yield one
        finally:
            self.total -= one.size


@dataclass
class OneList:
    """A list that is being read."""

    all: ListBytes
    size: int = 0

    @property
    def left(self) -> int:
        """The most bytes that the next page may have."""
        return LIST_MAX - self.size

    def add(self, size: int) -> None:
        """Count a page; raises UpstreamFailed if all lists together have become too large."""
        self.size, self.all.total = self.size + size, self.all.total + size
        if self.all.total > LISTS_MAX:
            message = f"sent lists of more than {LISTS_MAX} bytes at the same time"
            raise UpstreamFailed(self.all.upstream, message, reason="too-large")


def read_page(upstream: str, payload: bytes, what: str) -> dict[str, Any]:
    """The JSON object in a page; raises UpstreamContentInvalid for anything else."""
    document = read_json(payload)
    if document is None:
        raise UpstreamContentInvalid(upstream, f"sent no JSON for {what}", reason="not-json")
    return document


def next_page(current: URL, links: list[str]) -> URL | None:
    """The page that follows ``current``, or None.

    Only path and query of an absolute link are used: registries behind a proxy name an internal
    host, and a list never continues on another one. A link to another path ends the list.
    """
    for match in _LINK.finditer(",".join(links)):
        if _NEXT.search(match[2]):
            return _resolve(current, match[1])
    return None


def _resolve(current: URL, target: str) -> URL | None:
    try:
        there = current.join(URL(target.strip(), encoded=True))
    except ValueError:
        return None
    if there.raw_path != current.raw_path or not there.raw_query_string:
        return None
    if any(character <= " " or character > "~" for character in there.raw_query_string):
        return None
    return URL(f"{current.origin()}{there.raw_path}?{there.raw_query_string}", encoded=True)
