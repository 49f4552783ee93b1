"""The parser of ``WWW-Authenticate`` (RFC 9110 section 11.6.1), as registries send it.

A line may hold several challenges, values may be unquoted or empty, commas may trail, and a
quoted scope contains commas and spaces; so lines are tokenised before they are split.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
#: ``key = value`` or a lone word, which is a scheme (or the opaque data of an unknown scheme).
_PART: Final = re.compile(
    rf"""[\s,]*(?:
        (?P<key>{_TOKEN})[ \t]*=[ \t]*
            (?:"(?P<quoted>(?:[^"\\]|\\.)*)"?|(?P<bare>[^\s,"]*))
      | (?P<scheme>[^\s,="]+)
      | (?P<junk>[="])
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)
_LONGEST: Final = 8 * 1024  # characters of one line; no registry needs a tenth of it


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge: its scheme and its parameters, names in lower case."""

    scheme: str
    parameters: dict[str, str] = field(default_factory=dict)

    @property
    def realm(self) -> str:
        return self.parameters.get("realm", "").strip()

    @property
    def service(self) -> str:
        return self.parameters.get("service", "")

    @property
    def scopes(self) -> tuple[str, ...]:
        """The requested scopes: separated by spaces, otherwise unchanged."""
        return tuple(self.parameters.get("scope", "").split())


def parse_challenges(lines: Iterable[str]) -> list[Challenge]:
    """Every challenge of every header line, in order; malformed parts are skipped."""
    return [one for line in lines for one in _parse_line(line[:_LONGEST].rstrip(" \t,"))]


def preferred(challenges: Iterable[Challenge]) -> Challenge | None:
    """The challenge to answer: Bearer with a realm before Basic, whatever their order."""
    candidates = list(challenges)
    bearer = (one for one in candidates if one.scheme == "bearer" and one.realm)
    basic = (one for one in candidates if one.scheme == "basic")
    return next(bearer, None) or next(basic, None)


def _parse_line(line: str) -> Iterator[Challenge]:
    current: Challenge | None = None
    for match in _PART.finditer(line):
        if (scheme := match["scheme"]) is not None:
            if current is not None:
                yield current
            current = Challenge(scheme.lower())
        elif (key := match["key"]) is not None and current is not None:
            current.parameters.setdefault(key.lower(), _value(match))
    if current is not None:
        yield current


def _value(match: re.Match[str]) -> str:
    if (quoted := match["quoted"]) is not None:
        return _ESCAPE.sub(r"\1", quoted)
    return match["bare"] or ""
