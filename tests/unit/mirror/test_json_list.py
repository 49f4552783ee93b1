"""Lists as text: the same pages as of a list of objects."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from regmirror.mirror.json_list import JsonList

TEXTS = st.lists(st.text(max_size=5), unique=True, max_size=30).map(sorted)


@given(TEXTS, st.none() | st.text(max_size=5), st.none() | st.integers(0, 35))
def test_a_page_is_what_comes_after_last(items: Any, last: Any, limit: Any) -> None:
    """B53: ``last`` is exclusive and need not exist."""
    rest = [item for item in items if last is None or item > last]
    expected = rest if limit is None else rest[:limit]
    page = JsonList.of(items).page(last, limit)
    assert json.loads(b"[" + page.elements + b"]") == expected
    assert page.last == (expected[-1] if expected and len(expected) < len(rest) else None)


def test_an_empty_list_is_empty() -> None:
    assert JsonList.of([]).page("a", 5).elements == b""
    assert not JsonList.of([])
    assert JsonList.of([""])


def test_elements_are_selected_by_their_whole_value() -> None:
    """B54: also where the value stands under another key, or within another value."""
    items = [{"t": "a"}, {"t": "ab"}, {"u": "a"}, {"t": None}, {"t": 'q"\u00e9'}, {"t": ["a"]}]
    found = JsonList.of(items)
    assert found.select("t", ["a"]) == JsonList.of([{"t": "a"}])
    assert found.select("t", ['q"\u00e9', "ab"]) == JsonList.of([{"t": "ab"}, {"t": 'q"\u00e9'}])
    assert found.select("t", ["x"]) == JsonList()
