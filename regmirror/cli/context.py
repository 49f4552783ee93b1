"""What the global options say, for every command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from regmirror import settings
from regmirror.config import Config


@dataclass(frozen=True, slots=True)
class Context:
    """``config`` is the file named by ``--config``, if any."""

    config: str | None
    json: bool

    def load(self, **overrides: dict[str, Any]) -> Config:
        """The configuration, with tables of the command line over it; raises ConfigError."""
        return settings.load(settings.find_file(self.config), **overrides)
