"""Conditional and range requests, as functions of header texts (B49, B50)."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regmirror.errors import RangeInvalid
from regmirror.v2.conditions import RANGES_MAX, matches_etag, may_use_range, parse_ranges

ETAG = "sha256:" + "0" * 64
OTHER = "sha256:" + "1" * 64


@pytest.mark.parametrize(
    "header",
    [
        f'"{ETAG}"',
        ETAG,
        f'W/"{ETAG}"',
        f'"{OTHER}", "{ETAG}"',
        f'"{OTHER}",W/"{ETAG}" ',
        "*",
        f' "{ETAG}" ',
    ],
)
def test_an_entity_tag_is_found(header: str) -> None:
    """B50: in a list, weak, unquoted, or as ``*``."""
    assert matches_etag(header, ETAG)


@pytest.mark.parametrize("header", ["", f'"{OTHER}"', f'"{ETAG}0"', ETAG[:-1], '"*"', "W/", f'"{ETAG}'])
def test_another_entity_tag_is_not(header: str) -> None:
    """B50: nothing but the whole digest matches."""
    assert not matches_etag(header, ETAG)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", [(0, 1)]),
        ("bytes=0-99", [(0, 100)]),
        ("bytes=10-", [(10, 100)]),
        ("bytes=-10", [(90, 100)]),
        ("bytes=-1000", [(0, 100)]),
        ("bytes=90-1000", [(90, 100)]),
        ("bytes=0-9,20-29", [(0, 10), (20, 30)]),
        ("bytes=20-29,0-9", [(20, 30), (0, 10)]),
        ("bytes=0-9,5-14", [(0, 10), (5, 15)]),
        ("bytes=0-9,10-19", [(0, 10), (10, 20)]),
        ("bytes=0-0,-1", [(0, 1), (99, 100)]),
        ("bytes=0-9, 200-300", [(0, 10)]),
        ("bytes = 0 - 9", [(0, 10)]),
        ("BYTES=0-9", [(0, 10)]),
        ("bytes=00000000-000009", [(0, 10)]),
    ],
)
def test_ranges_come_in_their_order_and_unmerged(header: str, expected: list[tuple[int, int]]) -> None:
    """B49: single, open, suffix, past the end; several are neither sorted nor merged."""
    assert parse_ranges(header, 100) == expected


@pytest.mark.parametrize(
    "header",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=a-b",
        "bytes=1",
        "bytes=1-2-3",
        "bytes=0x1-2",
        "bytes=1-2,,3-4",
        "bytes=+1-2",
        "bytes=²-3",
        "chunks=0-1",
        "seconds=1-2",
        "bytes=" + "9" * 5000 + "-",
        "bytes=" + ",".join(["0-0"] * (RANGES_MAX + 1)),
    ],
)
def test_a_header_that_is_not_understood_is_ignored(header: str) -> None:
    """B49: another unit or nonsense means the whole content (RFC 9110 section 14.2)."""
    assert parse_ranges(header, 100) is None


@pytest.mark.parametrize(
    "header", ["bytes=100-", "bytes=100-200", "bytes=500-0", "bytes=-0", "bytes=9-8", "bytes=100-,200-300"]
)
def test_ranges_that_cannot_be_satisfied_are_416(header: str) -> None:
    """B49: ``bytes=500-0`` included, which the conformance suite asks for."""
    with pytest.raises(RangeInvalid) as caught:
        parse_ranges(header, 100)
    assert caught.value.size == 100


@pytest.mark.parametrize("header", ["bytes=0-", "bytes=0-0", "bytes=-1"])
def test_an_empty_blob_has_no_range(header: str) -> None:
    with pytest.raises(RangeInvalid):
        parse_ranges(header, 0)


def test_ranges_that_multiply_the_blob_are_ignored() -> None:
    """B49: four thousand times the whole blob is no answer to one small request."""
    assert parse_ranges("bytes=" + ",".join(["0-"] * 4000), 1000) is None
    assert parse_ranges("bytes=0-599,300-899", 1000) is None
    assert parse_ranges("bytes=0-499,250-749", 1000) == [(0, 500), (250, 750)]


def test_as_many_ranges_as_podman_asks_for_are_understood() -> None:
    """B49: zstd:chunked pulls ask for up to 1024 ranges in one header."""
    header = "bytes=" + ",".join(f"{start}-{start + 4}" for start in range(0, 10240, 10))

    assert parse_ranges(header, 20_000) == [(start, start + 5) for start in range(0, 10240, 10)]


@given(st.text(alphabet="bytes=0123456789-, ", max_size=40), st.integers(0, 1000))
def test_any_header_gives_ranges_within_the_blob_or_is_refused(header: str, size: int) -> None:
    """B49: whatever is asked for, no byte outside the blob is ever read."""
    try:
        ranges = parse_ranges(header, size)
    except RangeInvalid:
        return
    for start, stop in ranges or []:
        assert 0 <= start < stop <= size


@given(st.integers(1, 10**6), st.data())
def test_a_range_that_lies_within_the_blob_is_what_was_asked(size: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))

    assert parse_ranges(f"bytes={start}-{stop - 1}", size) == [(start, stop)]


@given(st.text(max_size=60))
def test_no_text_at_all_breaks_the_parser(header: str) -> None:
    """B52: a header is a stranger's text."""
    with suppress(RangeInvalid):
        ranges = parse_ranges(header, 10)
        assert ranges is None or all(0 <= start < stop <= 10 for start, stop in ranges)
    assert matches_etag(header, ETAG) in (True, False)


@pytest.mark.parametrize(
    ("if_range", "expected"),
    [
        (None, True),
        (f'"{ETAG}"', True),
        (ETAG, True),
        (f'"{OTHER}"', False),
        (f'W/"{ETAG}"', False),
        ("Wed, 21 Oct 2015 07:28:00 GMT", False),
    ],
)
def test_if_range_needs_a_strong_match(if_range: str | None, expected: bool) -> None:
    """B49: a weak tag or a date never counts."""
    assert may_use_range(if_range, ETAG) is expected
