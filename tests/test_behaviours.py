"""``docs/behaviours.md`` has every promise that anything refers to, and the tests that hold it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "behaviours.md"
PLACES = ("regmirror", "tests", "benchmarks", "docs", "SECURITY.md")
SUFFIXES = {".py", ".md", ".c"}
STATUS = re.compile(r"held|in part: .+|not yet(; .+)?")

#: A number, and neither a rule of the linter (three digits, the first of them 0) nor "at most B + 5".
NUMBER = re.compile(r"\bB[1-9][0-9]*\b")
PROMISE = re.compile(r"^\| (B[0-9]+) \| ([A-Z`][^|]+) \| ([^|]+) \|$", re.MULTILINE)
FILES = re.compile(r"^\| (B[0-9]+) \| (`tests/[^|]+) \|$", re.MULTILINE)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def numbers_in(path: Path) -> frozenset[str]:
    return frozenset(NUMBER.findall(path.read_text()))


def files_of(place: str) -> Iterator[Path]:
    """The files of a folder that may refer to a promise, or the one file."""
    path = ROOT / place
    found = path.rglob("*") if path.is_dir() else [path]
    return (file for file in found if file.suffix in SUFFIXES and file.is_file() and file != PAGE)


def promises() -> dict[str, str]:
    """Each number with its status."""
    return {number: status for number, _, status in PROMISE.findall(PAGE.read_text())}


def listed() -> dict[str, list[str]]:
    """Each number with the test files that the page lists for it."""
    return {number: re.findall(r"`([^`]+)`", row) for number, row in FILES.findall(PAGE.read_text())}


def files_naming(number: str) -> list[str]:
    """The test files that name the number; modules that only help tests are left out."""
    tests = (ROOT / "tests").rglob("test_*.py")
    return sorted(name_of(path) for path in tests if number in numbers_in(path))


def not_yet() -> list[str]:
    return [number for number, status in promises().items() if status.startswith("not yet")]


def test_each_number_has_one_promise_and_a_status() -> None:
    numbers = [number for number, _, _ in PROMISE.findall(PAGE.read_text())]
    expected = [f"B{number}" for number in range(1, len(numbers) + 1)]
    assert expected == sorted(numbers, key=lambda number: int(number[1:]))
    assert [number for number, status in promises().items() if not STATUS.fullmatch(status)] == []


@pytest.mark.parametrize("place", PLACES)
def test_every_number_that_is_referred_to_is_on_the_page(place: str) -> None:
    unknown = [(name_of(file), numbers_in(file) - promises().keys()) for file in files_of(place)]
    assert [(file, sorted(numbers)) for file, numbers in unknown if numbers] == []


def test_the_page_refers_to_no_number_that_it_does_not_have() -> None:
    assert sorted(numbers_in(PAGE) - promises().keys()) == []


def test_every_listed_file_exists_and_names_its_number() -> None:
    rows = [(number, file) for number, files in listed().items() for file in files]
    assert rows  # else the table was not found
    assert [(number, file) for number, file in rows if not (ROOT / file).is_file()] == []
    assert [(number, file) for number, file in rows if number not in numbers_in(ROOT / file)] == []


def test_every_test_that_names_a_number_is_listed_for_it() -> None:
    for number in promises():
        files = files_naming(number)
        assert files == listed().get(number, []), f"| {number} | {', '.join(f'`{file}`' for file in files)} |"


def test_what_is_not_held_yet_is_named_by_no_test() -> None:
    named = frozenset[str]().union(*(numbers_in(path) for path in (ROOT / "tests").rglob("*.py")))
    assert not_yet()
    assert [number for number in not_yet() if number in named] == []


def test_what_is_held_is_named_by_a_test() -> None:
    assert [number for number in promises() if number not in not_yet() and number not in listed()] == []


def test_no_reference_leads_to_a_list_outside_the_repository() -> None:
    """A reader can look up a number of the page or a section of a public specification, and no more."""
    outside = re.compile(r"\btraps? [0-9]|\b(protocol|clients|interface) notes\b|\bnotes §", re.IGNORECASE)
    files = [file for place in PLACES for file in files_of(place) if file != Path(__file__)]
    assert [name_of(file) for file in files if outside.search(file.read_text())] == []
