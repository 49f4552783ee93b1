"""Conditional and range requests (RFC 9110 §13 and §14), as functions of header texts."""

from __future__ import annotations

import re
from typing import Final

from regmirror.errors import RangeInvalid

_SPEC: Final = re.compile(r"\s*([0-9]{0,20})\s*-\s*([0-9]{0,20})\s*")
MOST_RANGES: Final = 4096  # podman asks for up to 1024 in one header


def matches_etag(header: str, etag: str) -> bool:
    """Whether ``If-None-Match`` names ``etag`` (unquoted): in a list, weak, unquoted or ``*``."""
    candidates = (item.strip().removeprefix("W/") for item in header.split(","))
    return any(item in ("*", etag, f'"{etag}"') for item in candidates)


def parse_ranges(header: str, size: int) -> list[tuple[int, int]] | None:
    """The ranges a ``Range`` header asks for, as (start, stop), in its order, none merged.

    None means that the header is to be ignored: another unit, not understood, absurdly many, or
    overlapping so much that the answer would be longer than the whole (RFC 9110 §17.15).
    Raises RangeInvalid where nothing of it can be satisfied. A last position before the first
    counts as unsatisfiable, which is what the specification's conformance suite asks for.
    """
    unit, equals, specs = header.partition("=")
    if unit.strip().lower() != "bytes" or not equals:
        return None
    parts = specs.split(",")
    if len(parts) > MOST_RANGES:
        return None
    found = []
    for part in parts:
        match = _SPEC.fullmatch(part)
        if match is None or match.group(0).strip() == "-":
            return None
        satisfiable = _resolve(match.group(1), match.group(2), size)
        if satisfiable is not None:
            found.append(satisfiable)
    if not found:
        raise RangeInvalid(f"no part of {header[:200]!r} lies within {size} bytes", size)
    if len(found) > 1 and sum(stop - start for start, stop in found) > size:
        return None
    return found


def _resolve(first: str, last: str, size: int) -> tuple[int, int] | None:
    if not first:
        count = int(last)
        return (max(0, size - count), size) if count and size else None
    start = int(first)
    stop = min(int(last) + 1, size) if last else size
    return (start, stop) if start < stop else None


def may_use_range(if_range: str | None, etag: str) -> bool:
    """Whether ``If-Range`` (absent, or a strong match of the entity tag) lets a range count."""
    return if_range is None or if_range.strip() in (f'"{etag}"', etag)
