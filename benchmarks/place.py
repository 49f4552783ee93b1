"""What a server is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.certificates import Certificates


@dataclass(frozen=True)
class Place:
    """A directory of its own, a port, and the URL of the upstream.

    ``tree`` is what the upstream serves. With ``secure`` the server speaks TLS.
    """

    directory: Path
    port: int
    upstream: str
    tree: Path
    certificates: Certificates
    secure: bool = False

    def write(self, name: str, text: str) -> str:
        """A file of configuration; its path."""
        path = self.directory / name
        path.write_text(text, encoding="utf-8")
        return str(path)
