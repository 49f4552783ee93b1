"""Patterns over names: ``*`` and ``?`` stay within one component, ``**`` crosses slashes.

``team-a/**`` matches everything below ``team-a``; ``[0-9]`` is a set, ``[!0-9]`` its complement.
"""

from __future__ import annotations

import re
from functools import lru_cache

_TOKEN = re.compile(r"\*\*|\*|\?|\[!?[^\]]+\]")


def _translate(token: str) -> str:
    if token == "**":
        return ".*"
    if token == "*":
        return "[^/]*"
    if token == "?":
        return "[^/]"
    return (
        "[^" + re.escape(token[2:-1]).replace(r"\-", "-") + "]"
        if token[1] == "!"
        else ("[" + re.escape(token[1:-1]).replace(r"\-", "-") + "]")
    )


@lru_cache(maxsize=1024)
def compile_glob(pattern: str) -> re.Pattern[str]:
    """The regular expression for ``pattern``."""
    parts, end = [], 0
    for match in _TOKEN.finditer(pattern):
        parts += [re.escape(pattern[end : match.start()]), _translate(match.group())]
        end = match.end()
    return re.compile("".join(parts) + re.escape(pattern[end:]), re.DOTALL)


def matches(pattern: str, text: str) -> bool:
    """Whether the whole of ``text`` matches ``pattern``."""
    return compile_glob(pattern).fullmatch(text) is not None


def matches_any(patterns: list[str], text: str) -> bool:
    """Whether one of ``patterns`` matches."""
    return any(matches(pattern, text) for pattern in patterns)
