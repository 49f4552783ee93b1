"""Reports: Markdown tables, and docs/performance.md with its plots."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median

from benchmarks import plot
from benchmarks.experiments import Curve, Growth, WarmBlob
from benchmarks.goals import ROWS, Goal, Row
from benchmarks.results import Results
from benchmarks.servers import PEERS
from benchmarks.stats import Spread, ratios, short

DOCUMENTS = Path(__file__).parents[1] / "docs"
MARKED = re.compile(r"(?<=<!-- results -->\n).*(?=<!-- end of results -->)", re.DOTALL)


def to_markdown(results: Results) -> str:
    """All tables, below a header with date, command, machine and versions."""
    tables = [measured_table(results), growth_table(results), goals_table(results), comparison_table(results)]
    return "\n\n".join([_header(results), *filter(None, tables)]) + "\n"


def write_documents(results: Results, directory: Path = DOCUMENTS) -> None:
    """Replace the tables between the marks of performance.md, and write the plots next to it."""
    path = directory / "performance.md"
    tables = f"\n{to_markdown(results)}\n"
    path.write_text(MARKED.sub(lambda _: tables, path.read_text(encoding="utf-8")), encoding="utf-8")
    for name, drawn in (("clients", _plot_clients(results)), ("growth", _plot_growth(results))):
        if drawn:
            (directory / f"performance-{name}.svg").write_text(drawn, encoding="utf-8")


def _header(results: Results) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    return "\n".join(
        (f"Taken on {results.taken} by `{results.command}`.", f"{results.machine}.", f"{versions}.")
    )


def measured_table(results: Results) -> str:
    """The median of each figure for each server."""
    rows = [row for row in ROWS if row.figure in results.figures and not row.subject]
    present = {name for row in rows for name in results.figures[row.figure]}
    servers = [name for name in (*results.subjects, *PEERS) if name in present]
    return _table(
        ["work", "unit", *servers],
        ([row.title, row.unit, *(_median(results, row, name) for name in servers)] for row in rows),
    )


def growth_table(results: Results) -> str:
    """Warm latencies, one client, for each size of store."""
    header = ["one client requests from regmirror", "unit", *map(Growth.server_name, Growth.stores)]
    return _table(header, ([title, "µs", *map(short, values)] for title, values in _growth(results)))


def goals_table(results: Results) -> str:
    """Goals and figures of each program; ratios are medians of rounds, with minimum and maximum."""
    lines = []
    for row in ROWS:
        for subject in [row.subject] if row.subject else results.subjects:
            hold, aim = (_verdicts(results, row, subject, goals) for goals in (row.hold, row.aim))
            if hold or aim:
                name = [subject] if len(results.subjects) > 1 else []
                lines.append([row.title, *name, hold, aim])
    program = ["program"] if len(results.subjects) > 1 else []
    return _table(["work", *program, "limit", "target"], lines)


def comparison_table(results: Results) -> str:
    """Ratios of each further program to the first, paired by round; empty if there is only one."""
    first, *others = results.subjects
    lines: list[list[str]] = []
    for row in ROWS:
        servers = results.figures.get(row.figure, {})
        if others and first in servers:
            cells = [str(Spread.of(ratios(servers[other], servers[first]))) for other in others]
            lines.append([row.title, "less" if row.is_less_better else "more", *cells])
    return _table(["work", "better is", *(f"{other} / {first}" for other in others)], lines)


def _median(results: Results, row: Row, server: str) -> str:
    values = results.figures[row.figure].get(server)
    return short(median(values)) if values else ""


def _verdicts(results: Results, row: Row, subject: str, goals: Sequence[Goal]) -> str:
    cells = []
    for goal in goals:
        verdict = row.judge(goal, results.figures, subject)
        if verdict is not None:
            wanted = goal.text(is_less_better=row.is_less_better, unit=row.unit)
            cells.append(f"{'✓' if verdict.is_reached else '✗'} {wanted}: {verdict.spread}")
    return "<br>".join(cells)


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table; empty if there are no lines."""
    rows = [header, ["---"] * len(header), *lines]
    if len(rows) == 2:
        return ""
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _plot_clients(results: Results) -> str:
    """Throughput of a warm blob by clients; empty unless all numbers of clients were measured."""
    numbers = sorted([*WarmBlob.numbers, *Curve.numbers])
    if not all(f"warm-blob-{clients}" in results.figures for clients in numbers):
        return ""
    lines = {
        server: [(clients, median(results.figures[f"warm-blob-{clients}"][server])) for clients in numbers]
        for server in results.figures["warm-blob-1"]
    }
    return plot.draw("Warm blob", "clients", "GB/s", lines)


def _plot_growth(results: Results) -> str:
    """Warm latency by the number of stored blobs; empty if it was not measured."""
    lines = {title: list(zip(Growth.stores, values, strict=True)) for title, values in _growth(results)}
    return plot.draw("Warm latency", "blobs stored", "µs", lines) if lines else ""


def _growth(results: Results) -> Iterator[tuple[str, list[float]]]:
    """Titles and latencies in microseconds, one latency for each size of store."""
    for kind, title in (("manifest", "manifest"), ("blob", "blob of 1 KB")):
        for suffix, quantile in (("", "p50"), ("-p99", "p99")):
            servers = results.figures.get(f"growth-{kind}{suffix}", {})
            if servers:
                values = [median(servers[Growth.server_name(blobs)]) for blobs in Growth.stores]
                yield f"{title}, {quantile}", values
