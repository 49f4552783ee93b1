"""How commands print: JSON, tables on a terminal, aligned text elsewhere.

What comes from images (labels, history) is written by strangers: control characters never reach
the terminal.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import typer

GAP = "  "


@dataclass(frozen=True, slots=True)
class Table:
    """``right`` names the columns of numbers; ``title`` stands above."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Collection[str] = ()
    title: str = ""


def print_json(value: Any) -> None:
    """Standard output gets one JSON document, in ASCII."""
    typer.echo(json.dumps(value, indent=2))


def print_parts(*parts: str | Table) -> None:
    """Print texts and tables with an empty line between them, all at once."""
    if is_terminal():
        _print_rich(parts)
    else:
        typer.echo("\n\n".join(part if isinstance(part, str) else plain(part) for part in parts))


def is_terminal() -> bool:
    # Closed by the caller (`>&-`), standard output is None.
    return bool(getattr(sys.stdout, "isatty", bool)())


def pairs(values: Sequence[tuple[str, str]]) -> str:
    """Lines of a label and its value, aligned."""
    width = max(len(label) for label, _ in values)
    return "\n".join(f"{label:<{width}}{GAP}{clean(value)}" for label, value in values)


def plain(table: Table) -> str:
    """The table as aligned text, one row a line, without a trailing space."""
    lines = [[name.upper() for name in table.columns], *([clean(cell) for cell in row] for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = [name in table.right for name in table.columns]
    text = "\n".join(
        GAP.join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )
    return f"{table.title}\n{text}" if table.title else text


def _print_rich(parts: Sequence[str | Table]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for position, part in enumerate(parts):
        if position:
            console.print()
        console.print(Text(part) if isinstance(part, str) else _rich_table(part))


def _rich_table(table: Table) -> Any:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(
        box=box.SIMPLE_HEAD, title=Text(table.title) if table.title else None, title_justify="left"
    )
    for name in table.columns:
        shown.add_column(name.upper(), justify="right" if name in table.right else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*(Text(clean(cell)) for cell in row))
    return shown


def clean(text: str) -> str:
    """Printable characters as they are, any other as Python would escape it."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def shorten(text: str, width: int) -> str:
    """At most ``width`` characters of one line."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 3] + "..."


def short_digest(digest: str) -> str:
    """A digest for people to compare; whole where programs may read it."""
    algorithm, _, encoded = digest.partition(":")
    return f"{algorithm}:{encoded[:12]}" if is_terminal() else digest


def bytes_text(count: int | None) -> str:
    """``31.0 MB``: a size to read, by powers of 1000; a dash for an unknown one."""
    if count is None or count < 0:
        return "-"
    if count < 1000:
        return f"{count} B"
    size = float(count)
    for unit in ("kB", "MB", "GB", "TB"):
        size /= 1000
        if size < 999.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} PB"


def time_text(seconds: float | None) -> str:
    """Local time to the second; a dash for none."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "-"


def time_json(seconds: float | None) -> str | None:
    """RFC 3339 in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds)) if seconds else None
