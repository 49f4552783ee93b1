"""Output of commands: JSON, tables on a terminal, aligned text elsewhere.

Labels and history come from the authors of images, so control characters are escaped.
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
    """``right`` names the columns that are aligned to the right; ``title`` is printed above."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Collection[str] = ()
    title: str = ""


def print_json(value: Any) -> None:
    """Print ``value`` as one JSON document, in ASCII."""
    typer.echo(json.dumps(value, indent=2))


def print_parts(*parts: str | Table) -> None:
    """Print texts and tables, separated by empty lines."""
    if is_terminal():
        _print_rich(parts)
    else:
        typer.echo("\n\n".join(part if isinstance(part, str) else plain(part) for part in parts))


def is_terminal() -> bool:
    """Whether standard output is a terminal; it is None if the caller closed it (``>&-``)."""
    return bool(getattr(sys.stdout, "isatty", bool)())


def pairs(values: Sequence[tuple[str, str]]) -> str:
    """Lines of a label and its value, aligned."""
    width = max(len(label) for label, _ in values)
    return "\n".join(f"{label:<{width}}{GAP}{clean(value)}" for label, value in values)


def plain(table: Table) -> str:
    """The table as aligned text, one row per line, without trailing spaces."""
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
    """Escape the characters that are not printable, as ``repr`` does."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def shorten(text: str, width: int) -> str:
    """``text`` on one line, cut to ``width`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 3] + "..."


def short_digest(digest: str) -> str:
    """The digest, cut to 12 digits on a terminal."""
    algorithm, _, encoded = digest.partition(":")
    return f"{algorithm}:{encoded[:12]}" if is_terminal() else digest


def bytes_text(count: int | None) -> str:
    """A size for people, such as ``31.0 MB``, in powers of 1000; a dash for an unknown one."""
    import humanize

    return "-" if count is None or count < 0 else humanize.naturalsize(count)


def time_text(seconds: float | None) -> str:
    """A time for people: ``3 hours ago`` on a terminal, elsewhere local time; a dash for none."""
    if not seconds:
        return "-"
    if is_terminal():
        import humanize

        return humanize.naturaltime(time.time() - seconds)
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def time_json(seconds: float | None) -> str | None:
    """RFC 3339 in UTC, to the second; None for none."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds)) if seconds else None
