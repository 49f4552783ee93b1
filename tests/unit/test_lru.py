"""A bounded dictionary."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from regmirror.lru import Lru, weigh_texts


def one(key: Any, value: Any) -> Any:
    """Every entry weighs the same."""
    return 1


def length(key: Any, value: Any) -> Any:
    return len(value)


def test_what_was_put_is_there() -> None:
    lru = Lru(2, one)
    lru.put("a", 1)
    assert lru.get("a") == 1
    assert lru.get("b") is None


def test_what_was_found_and_not_is_counted() -> None:
    lru = Lru(2, one)
    lru.put("a", 1)
    lru.get("a")
    lru.get("a")
    lru.get("b")
    assert (lru.hits, lru.misses) == (2, 1)


def test_what_was_used_longest_ago_goes_first() -> None:
    lru = Lru(2, one)
    lru.put("a", 1)
    lru.put("b", 2)
    assert lru.get("a") == 1
    lru.put("c", 3)
    assert lru.get("b") is None
    assert lru.get("a") == 1
    assert lru.get("c") == 3


def test_the_limit_counts_weights() -> None:
    lru = Lru(10, length)
    lru.put("a", b"12345")
    lru.put("b", b"12345")
    lru.put("c", b"1")
    assert lru.get("a") is None
    assert len(lru) == 2


def test_an_entry_that_is_put_again_counts_once() -> None:
    lru = Lru(10, length)
    lru.put("a", b"1234567")
    lru.put("a", b"123")
    lru.put("b", b"1234567")
    assert lru.get("a") == b"123"
    assert lru.get("b") == b"1234567"


def test_the_newest_entry_stays_however_heavy() -> None:
    lru = Lru(3, length)
    lru.put("a", b"1")
    lru.put("b", b"12345")
    assert lru.get("a") is None
    assert lru.get("b") == b"12345"


def test_a_dropped_entry_makes_room() -> None:
    lru = Lru(2, one)
    lru.put("a", 1)
    lru.put("b", 2)
    lru.drop("a")
    lru.drop("never there")
    lru.put("c", 3)
    assert lru.get("b") == 2
    assert lru.get("c") == 3


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), max_size=50))
def test_the_limit_holds_after_whatever_was_put(entries: Any) -> None:
    lru: Lru[int, int] = Lru(8, lambda key, weight: weight)
    for key, weight in entries:
        lru.put(key, weight)
        assert lru.get(key) == weight
    assert sum(lru.get(key) or 0 for key in range(6)) <= 8


def test_keys_weigh_too() -> None:
    """B100: names that clients invent are as long as they like."""
    lru: Lru[str, int] = Lru(10_000, lambda key, value: weigh_texts(key))
    for number in range(100):
        lru.put(f"{number:04000}", True)
    assert len(lru) == 2


def test_entries_that_are_over_are_dropped_together() -> None:
    lru = Lru(10, one)
    for number in range(5):
        lru.put(str(number), number + 1)
    lru.drop_where(lambda value: value < 5)
    assert lru.items() == [("4", 5)]
    assert lru.weight == 1
