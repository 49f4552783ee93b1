"""What the global options say, for every command."""

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
    """``config`` is the file named by ``--config``, if any; ``json`` whether to print JSON."""

    config: str | None
    json: bool

    def file(self) -> Path | None:
        """The configuration file that is read, None where the defaults are enough."""
        from regmirror.config import loader

        return loader.find_file(self.config)

    def load(self, **overrides: dict[str, Any]) -> Config:
        """The configuration, with tables of the command line over it; raises ConfigError."""
        from regmirror.config import loader

        return loader.load(self.file(), **overrides)

    def reader(self, **overrides: dict[str, Any]) -> Callable[[], Config]:
        """``load`` for a server, which reads again: always the file that was found at first.

        Were it looked for again, one that is being replaced would be passed over in silence.
        """
        from regmirror.config import loader

        file = self.file()
        return lambda: loader.load(file or self.file(), **overrides)


def given(context: typer.Context, config: str | None, json: bool = False) -> Context:
    """The global options, whether written before or after the command; the latter win."""
    before: Context = context.obj
    return Context(config or before.config, json or before.json)


@contextmanager
def wrong_usage(context: typer.Context, argument: str) -> Iterator[None]:
    """Turn a malformed name inside into a usage error of ``argument``."""
    try:
        yield
    except (NameInvalid, DigestInvalid, ManifestUnknown, ValueError) as error:
        raise typer.BadParameter(str(error), ctx=context, param_hint=argument) from None
