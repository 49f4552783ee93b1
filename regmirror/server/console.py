"""Lines for the person who started the server, and the same facts in the log of each process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from regmirror import __version__
from regmirror.config.diff import Changes
from regmirror.errors import ConfigError
from regmirror.telemetry import logs


def print_line(text: str) -> None:
    """Print one line to standard error."""
    sys.stderr.write(f"regmirror: {text}\n")
    sys.stderr.flush()


def print_ready(url: str, workers: int) -> None:
    """Print to standard output that the server serves."""
    suffix = f" with {workers} workers" if workers > 1 else ""
    sys.stdout.write(f"regmirror {__version__} serves {url}{suffix}\n")
    sys.stdout.flush()


@contextmanager
def reporting_failed_reload() -> Iterator[None]:
    """Report any error of a reload; the process continues with its current configuration."""
    try:
        yield
    except ConfigError as error:
        print_line(f"configuration not reloaded, the old one stays: {error}")
        logs.log_warning("configuration not reloaded", key=error.key, value=error.value, reason=error.reason)
    except Exception as error:  # noqa: BLE001 - the server is worth more than the reload
        # Not the text of an unexpected error: it may contain part of the file.
        details = (error.strerror or "") if isinstance(error, OSError) else ""
        reason = f"{type(error).__name__} {details}".strip()
        print_line(f"configuration not reloaded, the old one stays: {reason}")
        logs.log_warning("configuration not reloaded", reason=reason)


def print_changes(changes: Changes) -> None:
    """Print the names of changed tables and of restart-required keys; values may be secret."""
    print_line(f"configuration reloaded: {', '.join(changes.tables) or 'nothing changed'}")
    if changes.need_restart:
        print_line(f"the old value stays until a restart: {', '.join(changes.need_restart)}")


def log_changes(changes: Changes) -> None:
    """Log the same names."""
    logs.log_info(
        "configuration reloaded", tables=list(changes.tables), need_restart=list(changes.need_restart)
    )
