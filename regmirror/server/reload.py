"""What came of reading the configuration again, in one line for people and one in the log."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from regmirror.config.diff import Changes
from regmirror.config.schema import Config
from regmirror.errors import ConfigError
from regmirror.telemetry import logs

#: Reads the configuration as at the start: the same file, environment and command line.
Read = Callable[[], Config]


@contextmanager
def keeping_the_old() -> Iterator[None]:
    """Whatever goes wrong inside is said, and the process goes on with what it has."""
    try:
        yield
    except ConfigError as error:
        say(f"configuration not reloaded, the old one stays: {error}")
        logs.log_warning("configuration not reloaded", key=error.key, value=error.value, reason=error.reason)
    except Exception as error:  # noqa: BLE001 - the server is worth more than the reload
        # Not the text of what was not raised on purpose: it may hold part of the file.
        why = (error.strerror or "") if isinstance(error, OSError) else ""
        why = f"{type(error).__name__} {why}".strip()
        say(f"configuration not reloaded, the old one stays: {why}")
        logs.log_warning("configuration not reloaded", reason=why)


def say_reloaded(changes: Changes) -> None:
    """Which tables changed, and what waits for a restart: names alone, since values may be secret."""
    say(f"configuration reloaded: {', '.join(changes.tables) or 'nothing changed'}")
    if changes.need_restart:
        say(f"the old value stays until a restart: {', '.join(changes.need_restart)}")


def log_reloaded(changes: Changes) -> None:
    """The same for the log, where each process writes for itself."""
    logs.log_info(
        "configuration reloaded", tables=list(changes.tables), need_restart=list(changes.need_restart)
    )


def say(text: str) -> None:
    """One line for whoever started the server."""
    sys.stderr.write(f"regmirror: {text}\n")
    sys.stderr.flush()
