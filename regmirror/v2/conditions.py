"""Conditional and range requests (RFC 9110 §13 and §14), as functions of header texts."""

from __future__ import annotations

import re
from typing import Final

from regmirror.errors import RangeInvalid

_SPEC: Final = re.compile(r"\s*([0-9]{0,20})\s*-\s*([0-9]{0,20})\s*")
RANGES_MAX: Final = 4096  # ranges of one header; podman sends up to 1024


def matches_etag(header: str, etag: str) -> bool:
    """Whether ``If-None-Match`` matches ``etag``, which has no quotes (RFC 9110 §13.1.2).

    The header is ``*`` or a list of entity tags. Weak tags and tags without quotes match too.
    """
    candidates = (item.strip().removeprefix("W/") for item in header.split(","))
    return any(item in ("*", etag, f'"{etag}"') for item in candidates)


def parse_ranges(header: str, size: int) -> list[tuple[int, int]] | None:
    """The ranges of a ``Range`` header as (start, stop), in its order, none merged.

    Returns None if the header must be ignored: it has another unit or is malformed, it has more than
    ``RANGES_MAX`` ranges, or its ranges together are longer than the content (RFC 9110 §17.15).
    Raises RangeInvalid if no range can be satisfied. A range whose last position lies before its
    first cannot be satisfied, as the conformance suite of the distribution specification requires.
    """
    unit, equals, specs = header.partition("=")
    if unit.strip().lower() != "bytes" or not equals:
        return None
    parts = specs.split(",")
    if len(parts) > RANGES_MAX:
        return None
    ranges = []
    for part in parts:
        match = _SPEC.fullmatch(part)
        if match is None or match.group(0).strip() == "-":
            return None
        satisfiable = _resolve(match.group(1), match.group(2), size)
        if satisfiable is not None:
            ranges.append(satisfiable)
    if not ranges:
        raise RangeInvalid(f"no range of {header[:200]!r} lies within the {size} bytes of the content", size)
    if len(ranges) > 1 and sum(stop - start for start, stop in ranges) > size:
        return None
    return ranges


def _resolve(first: str, last: str, size: int) -> tuple[int, int] | None:
    if not first:
        count = int(last)
        return (max(0, size - count), size) if count and size else None
    start = int(first)
    stop = min(int(last) + 1, size) if last else size
    return (start, stop) if start < stop else None


def may_use_range(if_range: str | None, etag: str) -> bool:
    """Whether ``If-Range`` allows ranges: it is absent, or matches ``etag`` strongly (RFC 9110 §13.1.5)."""
    return if_range is None or if_range.strip() in (f'"{etag}"', etag)
