"""What differs between databases in statements: upserts, the greatest of values, lists of values."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

__all__ = ["greatest", "insert", "values_of"]


def greatest(*values: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """The greatest of several values of one row."""
    return sa.func.max(*values)


def values_of(texts: Iterable[str]) -> sa.Select[tuple[Any]]:
    """Select the texts as one column, in one bound parameter: their number has no limit."""
    return sa.select(sa.func.json_each(json.dumps([*texts])).table_valued("value").c.value)
