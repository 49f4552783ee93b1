"""Globs over names of repositories and images.

``*`` matches any number of characters, ``?`` one character, ``[0-9]`` one of a set and ``[!0-9]``
one that is not in the set; none of them matches a slash. ``**`` matches slashes too, so that
``team-a/**`` matches everything below ``team-a``.
"""

from __future__ import annotations

import re
import warnings
from functools import lru_cache

_TOKEN = re.compile(r"\*\*|\*|\?|\[!?[^\]]+\]")


def _translate(token: str) -> str:
    if token == "**":
        return ".*"
    if token == "*":
        return "[^/]*"
    if token == "?":
        return "[^/]"
    members = re.escape(token[1:-1]).replace(r"\-", "-")
    return f"(?!/)[^{members[1:]}]" if members.startswith("!") else f"[{members}]"


@lru_cache(maxsize=1024)
def compile_glob(pattern: str) -> re.Pattern[str]:
    """The regular expression for ``pattern``; raises ValueError for an invalid set such as ``[z-a]``."""
    parts, end = [], 0
    for match in _TOKEN.finditer(pattern):
        parts += [re.escape(pattern[end : match.start()]), _translate(match.group())]
        end = match.end()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # raised for set operations such as [a--b]
            return re.compile("".join(parts) + re.escape(pattern[end:]), re.DOTALL)
    except (re.error, FutureWarning) as error:
        raise ValueError(f"{pattern!r} is not a pattern: {error}") from None


def matches(pattern: str, text: str) -> bool:
    """Whether the whole of ``text`` matches ``pattern``."""
    return compile_glob(pattern).fullmatch(text) is not None


def matches_any(patterns: list[str], text: str) -> bool:
    """Whether at least one of ``patterns`` matches the whole of ``text``."""
    return any(matches(pattern, text) for pattern in patterns)
