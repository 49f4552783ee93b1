"""Lists that come in pages (``Link: </v2/…>; rel="next"``, RFC 8288)."""

from __future__ import annotations

import re
from typing import Final

from yarl import URL

PAGES_MAX: Final = 1000
_LINK: Final = re.compile(r"<([^<>]*)>([^<]*)")
_NEXT: Final = re.compile(r""";\s*rel\s*=\s*"?(?:[^";]*\s)?next(?:\s[^";]*)?"?\s*(?:[;,]|$)""", re.IGNORECASE)


def next_page(current: URL, links: list[str]) -> URL | None:
    """The page that follows ``current``, or None.

    Of an absolute link only path and query count: registries behind a proxy name themselves by
    an internal host, and a list never continues on another one. A link out of the list's own
    path ends it.
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
