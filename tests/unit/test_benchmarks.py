"""The pure parts of the benchmarks: ratios, verdicts, tables and plots."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from benchmarks import plot, rows
from benchmarks.clients import Load, parse_wrk
from benchmarks.content import Content
from benchmarks.experiments import Curve, WarmBlob
from benchmarks.goals import ROWS, Goal, Row
from benchmarks.report import MARKED, goals_table, measured_table, to_markdown, write_documents
from benchmarks.results import Results
from benchmarks.stats import Spread, ratios, short

WRK = """Running 1s test @ http://127.0.0.1:7001/v2/a/b/manifests/c
  1 threads and 32 connections
  Latency Distribution
     50%    2.31ms
     75%    2.90ms
     90%    4.00ms
     99%  980.00us
  11520 requests in 1.00s, 39.65MB read
{failures}Requests/sec:  11507.12
Transfer/sec:     39.61MB
"""


def results(figures: Any, subjects: Any = ("regmirror",)) -> Any:
    return Results("2026-01-01", "scripts/bench", "2 cores", {"nginx": "1.22"}, list(subjects), figures)


# --- statistics


def test_a_spread_is_the_median_between_the_least_and_the_greatest() -> None:
    assert Spread.of([3.0, 1.0, 8.0]) == Spread(3.0, 1.0, 8.0)
    assert str(Spread.of([3.0, 1.0, 8.0])) == "3.00 (1.00 to 8.00)"


def test_ratios_are_those_of_the_same_round() -> None:
    assert ratios([2.0, 9.0], of=[1.0, 3.0]) == [2.0, 3.0]


def test_rounds_that_are_missing_are_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        ratios([1.0], of=[1.0, 2.0])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.01234, "0.0123"),
        (0.125, "0.12"),
        (3.456, "3.46"),
        (34.56, "34.6"),
        (345.6, "346"),
        (12345.6, "12\N{NO-BREAK SPACE}346"),
    ],
)
def test_a_number_has_about_three_digits(value: float | int, text: str) -> None:
    assert short(value) == text


# --- goals


@pytest.mark.parametrize(
    ("is_less_better", "goal", "is_reached"),
    [
        (False, Goal(2, "peer"), True),
        (False, Goal(2.1, "peer"), False),
        (True, Goal(2, "peer"), True),
        (True, Goal(1.9, "peer"), False),
        (False, Goal(20), True),
        (True, Goal(19), False),
    ],
)
def test_a_goal_is_reached_by_the_median(is_less_better: bool, goal: Any, is_reached: bool) -> None:
    row = Row("figure", "work", "s", is_less_better=is_less_better)
    measured = {"figure": {"regmirror": [20.0, 1.0, 900.0], "peer": [10.0, 10.0, 10.0]}}
    verdict = row.judge(goal, measured, "regmirror")
    assert verdict is not None
    assert verdict.is_reached == is_reached


def test_what_was_not_measured_is_not_judged() -> None:
    row = Row("figure", "work", "s")
    assert row.judge(Goal(1, "peer"), {"figure": {"regmirror": [1.0]}}, "regmirror") is None
    assert row.judge(Goal(1), {"figure": {"peer": [1.0]}}, "regmirror") is None
    assert row.judge(Goal(1), {}, "regmirror") is None


def test_no_two_rows_show_one_figure() -> None:
    assert len({row.figure for row in ROWS}) == len(ROWS)


# --- what wrk prints


def test_the_figures_of_wrk() -> None:
    assert parse_wrk(WRK.format(failures="")) == Load(11507.12, 0.00231, 0.00098)


@pytest.mark.parametrize(
    "failure", ["Non-2xx or 3xx responses: 5", "Socket errors: connect 0, read 3, write 0, timeout 0"]
)
def test_failed_requests_are_no_measurement(failure: str) -> None:
    with pytest.raises(ValueError, match=failure[:12]):
        parse_wrk(WRK.format(failures=f"  {failure}\n"))


# --- content


def test_the_files_of_an_image_are_named_by_their_digests(tmp_path: Path) -> None:
    content = Content(tmp_path)
    image = content.make_image([3_000_000, 5])
    manifest = (tmp_path / "manifests" / image.tag).read_bytes()
    assert hashlib.sha256(manifest).hexdigest() == image.tag
    described = json.loads(manifest)
    assert [described["config"], *described["layers"]] == [
        {"mediaType": d["mediaType"], "digest": b.digest, "size": b.size}
        for d, b in zip([described["config"], *described["layers"]], image.blobs, strict=True)
    ]
    for blob in image.blobs:
        data = (tmp_path / "blobs" / blob.digest[7:]).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (blob.digest[7:], blob.size)


def test_no_two_images_share_a_blob_and_what_is_removed_is_gone(tmp_path: Path) -> None:
    content = Content(tmp_path)
    one, other = content.make_image([100]), content.make_image([100])
    assert not {blob.digest for blob in one.blobs} & {blob.digest for blob in other.blobs}
    content.remove(one)
    content.remove(other)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# --- the store of many rows


async def test_the_collection_of_a_generated_store_removes_nothing_that_is_tagged(tmp_path: Path) -> None:
    rows.fill(tmp_path / "data", 20, 5, with_files=True)
    rows.add_warm_blobs(tmp_path / "data")
    _, _, _, checked, removed = await rows.collect(tmp_path / "data", "reconcile")
    assert (checked, removed) == (25, 0)


def test_generated_manifests_match_their_digests(tmp_path: Path) -> None:
    rows.fill(tmp_path / "data", 20, 5, with_files=False)
    with closing(sqlite3.connect(tmp_path / "data" / "regmirror.db")) as connection:
        manifests = connection.execute("SELECT digest, payload FROM manifests").fetchall()
    assert len(manifests) == 5
    assert all(digest == f"sha256:{hashlib.sha256(payload).hexdigest()}" for digest, payload in manifests)


# --- tables


FIGURES = {"start": {"regmirror": [1.0, 2.0, 1.2], "nginx": [0.1, 0.1, 0.1]}}


def test_the_table_of_figures_has_a_column_for_each_server_that_was_measured() -> None:
    assert measured_table(results(FIGURES)).splitlines() == [
        "| work | unit | regmirror | nginx |",
        "| --- | --- | --- | --- |",
        "| start to ready | s | 1.20 | 0.10 |",
    ]


def test_the_table_of_goals_says_what_is_reached_and_by_how_much() -> None:
    assert goals_table(results(FIGURES)).splitlines()[2:] == [
        "| start to ready | ✓ ≤ 1.5 s: 1.20 (1.00 to 2.00) |  |"
    ]


def test_two_programs_are_compared_round_by_round() -> None:
    figures = {"warm-blob-1": {"before": [2.0, 4.0], "after": [3.0, 4.0]}}
    text = to_markdown(results(figures, subjects=("before", "after")))
    assert "| work | better is | after / before |" in text
    assert "| warm blob, 1 client | more | 1.25 (1.00 to 1.50) |" in text


def test_results_survive_a_file(tmp_path: Path) -> None:
    results(FIGURES).write(tmp_path / "results" / "one.json")
    assert Results.load(tmp_path / "results" / "one.json") == results(FIGURES)


def test_the_document_gets_tables_and_plots_and_keeps_its_words(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text("before\n<!-- results -->\nold\n<!-- end of results -->\nafter\n")
    numbers = [*WarmBlob.numbers, *Curve.numbers]
    curve = {f"warm-blob-{clients}": {"regmirror": [1.0 * clients]} for clients in numbers}
    write_documents(results(curve), tmp_path)
    text = document.read_text()
    assert text.startswith("before\n<!-- results -->\n")
    assert text.endswith("<!-- end of results -->\nafter\n")
    assert "old" not in text
    assert "| warm blob, 8 clients | GB/s | 8.00 |" in text
    assert [path.name for path in tmp_path.glob("*.svg")] == ["performance-clients.svg"]
    assert MARKED.search(text)


# --- plots


def draw_lines() -> Any:
    return ET.fromstring(
        plot.draw(
            "a < b",
            "clients",
            "GB/s",
            {"one": [(1, 1.0), (10, 2.0), (100, 4.5)], "two": [(1, 4.4), (100, 4.5)]},
        )
    )


def texts(drawn: Any) -> Any:
    return [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")]


def test_a_plot_names_its_axes_its_marks_and_its_lines() -> None:
    found = texts(draw_lines())
    assert found[:3] == ["a < b", "clients", "GB/s"]
    assert {"1", "10", "100", "one", "two"} <= set(found)


def test_names_of_lines_that_end_together_do_not_lie_on_each_other() -> None:
    drawn = draw_lines()
    places = [
        float(e.attrib["y"])
        for e in drawn.iter("{http://www.w3.org/2000/svg}text")
        if e.text in ("one", "two")
    ]
    assert abs(places[0] - places[1]) >= plot.LABEL_HEIGHT


def test_equal_ratios_on_the_x_axis_have_equal_distances() -> None:
    circles = [
        e
        for e in draw_lines().iter("{http://www.w3.org/2000/svg}circle")
        if e.attrib["fill"] == plot.COLOURS[0]
    ]
    first, second, third = (float(circle.attrib["cx"]) for circle in circles)
    assert second - first == pytest.approx(third - second, abs=0.11)
