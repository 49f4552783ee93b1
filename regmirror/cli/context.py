"""The global options, and the configuration that they select."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from regmirror.errors import DigestInvalid, ManifestUnknown, NameInvalid

if TYPE_CHECKING:
    from regmirror.config.schema import Config


@dataclass(frozen=True, slots=True)
class Context:
    """``config`` is the value of ``--config``; ``json`` is whether to print JSON."""

    config: str | None
    json: bool

    def file(self) -> Path | None:
        """The configuration file to read; None if there is none and the defaults apply."""
        from regmirror.config import loader

        return loader.find_file(self.config)

    def load(self, **overrides: dict[str, Any]) -> Config:
        """The configuration, overridden by tables from the command line; raises ConfigError."""
        from regmirror.config import loader

        return loader.load(self.file(), **overrides)

    def reader(self, **overrides: dict[str, Any]) -> Callable[[], Config]:
        """A function that loads the configuration each time, always from the file found first.

        A new search could miss the file while it is being replaced, and use the defaults.
        """
        from regmirror.config import loader

        file = self.file()
        return lambda: loader.load(file or self.file(), **overrides)


def merge_options(context: typer.Context, config: str | None, json: bool = False) -> Context:
    """Combine the options before and after the command name; those after it override."""
    general: Context = context.obj
    return Context(config or general.config, json or general.json)


@contextmanager
def usage_errors(context: typer.Context, argument: str) -> Iterator[None]:
    """Report a malformed value that is parsed inside the block as a usage error of ``argument``."""
    try:
        yield
    except (NameInvalid, DigestInvalid, ManifestUnknown, ValueError) as error:
        raise typer.BadParameter(str(error), ctx=context, param_hint=argument) from None
