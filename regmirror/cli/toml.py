"""Writing TOML: the few kinds of values that a configuration has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def dump(table: Mapping[str, Any]) -> str:
    """A document that ``tomllib`` reads back as ``table``."""
    return "\n".join(_lines(table, ())).strip("\n") + "\n"


def _lines(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """First the values: whatever follows the header of another table belongs to that one."""
    for key, value in table.items():
        if not _is_table(value) and not _is_tables(value):
            yield f"{_key(key)} = {_value(value)}"
    for key, value in table.items():
        below = (*path, key)
        name = ".".join(map(_key, below))
        if _is_table(value):
            if not value or not all(map(_is_table, value.values())):
                yield f"\n[{name}]"
            yield from _lines(value, below)
        elif _is_tables(value):
            for item in value:
                yield f"\n[[{name}]]"
                yield from _lines(item, below)


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping)


def _is_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_table, value))


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _value(key)


def _value(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    # JSON's texts, numbers and truth values are TOML's, but for one character that TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
