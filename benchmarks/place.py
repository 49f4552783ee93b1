"""Directory, port and upstream of one server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.certificates import Certificates


@dataclass(frozen=True)
class Place:
    """Directory, port and upstream URL of one server.

    ``tree`` is the directory that the upstream serves. If ``secure``, the server uses TLS.
    """

    directory: Path
    port: int
    upstream: str
    tree: Path
    certificates: Certificates
    secure: bool = False

    def write(self, name: str, text: str) -> str:
        """Write a configuration file; return its path."""
        path = self.directory / name
        path.write_text(text, encoding="utf-8")
        return str(path)
