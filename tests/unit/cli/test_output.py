"""Tables, sizes and times, for people and as JSON."""

from __future__ import annotations

import json
import time

import pytest

from regmirror.cli import output


def test_a_table_is_aligned_and_ends_without_spaces() -> None:
    table = output.Table(("image", "size"), [("alpine", "1 B"), ("a", "100.0 MB")], right={"size"})
    assert output.plain(table) == "IMAGE       SIZE\nalpine       1 B\na       100.0 MB"


def test_control_characters_of_an_image_do_not_reach_the_terminal() -> None:
    assert output.clean("a\x1b[31m\x9b\nü") == "a\\x1b[31m\\x9b\\nü"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 Bytes"),
        (999, "999 Bytes"),
        (1000, "1.0 kB"),
        (999_950, "1.0 MB"),
        (31_000_000, "31.0 MB"),
        (-1, "-"),
        (None, "-"),
    ],
)
def test_sizes_are_short(count: int | None, text: str) -> None:
    assert output.bytes_text(count) == text


def test_times_in_json_are_utc() -> None:
    assert output.time_json(0.0) is None
    assert output.time_json(1_700_000_000.9) == "2023-11-14T22:13:20Z"


def test_times_are_relative_on_a_terminal_and_exact_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert output.time_text(None) == output.time_text(0.0) == "-"
    assert len(output.time_text(time.time())) == len("2023-11-14 22:13:20")
    monkeypatch.setattr(output, "is_terminal", lambda: True)
    assert output.time_text(time.time() - 3 * 3600) == "3 hours ago"


def test_a_digest_is_short_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    digest = "sha256:" + "a" * 64
    assert output.short_digest(digest) == digest
    monkeypatch.setattr(output, "is_terminal", lambda: True)
    assert output.short_digest(digest) == "sha256:" + "a" * 12


def test_a_long_text_is_cut_to_one_line() -> None:
    assert output.shorten("a\n  b", 10) == "a b"
    assert output.shorten("x" * 11, 10) == "x" * 7 + "..."


def test_a_terminal_gets_every_cell_and_title(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "is_terminal", lambda: True)
    table = output.Table(("image", "size"), [("alpine\x1b", "1 B")], right={"size"}, title="cached")
    output.print_parts("first", table)
    printed = capsys.readouterr().out
    for text in ("first", "cached", "IMAGE", "SIZE", "alpine\\x1b", "1 B"):
        assert text in printed


def test_parts_are_separated_by_empty_lines(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_parts("first", output.Table(("a",), [("b",)], title="cached"))
    assert capsys.readouterr().out == "first\n\ncached\nA\nb\n"


def test_json_is_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json({"a": "ä"})
    assert "\\u00e4" in (printed := capsys.readouterr().out)
    assert json.loads(printed) == {"a": "ä"}


def test_a_closed_standard_output_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    assert not output.is_terminal()
