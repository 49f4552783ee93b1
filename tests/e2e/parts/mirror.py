"""regmirror as its user runs it: the command, a configuration file, a port."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.e2e.parts.process import LOOPBACK, Process, clean_environment, pick_port
from tests.e2e.parts.web import Response, request

ROOT = Path(__file__).resolve().parents[3]
READY = re.compile(r"http://127\.0\.0\.1:\d+")
Tables = Mapping[str, Mapping[str, Any]]


def to_toml(tables: Tables) -> str:
    """Write tables of plain values; JSON's spelling of those is TOML's too."""
    lines = []
    for name, values in tables.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


class Mirror:
    """One regmirror with a directory of its own; it can end and start again on the same port and store."""

    def __init__(self, directory: Path, upstreams: Tables, *, workers: int = 1) -> None:
        self.host = f"{LOOPBACK}:{pick_port()}"
        self.url = f"http://{self.host}"
        self._directory = directory
        self._workers = workers
        self._config = directory / "mirror.toml"
        storage = {"path": str(directory / "store"), "min_free": "0"}
        named = {f'upstreams."{name}"': table for name, table in upstreams.items()}
        self._config.write_text(to_toml({"storage": storage, **named}))
        self._process: Process | None = None

    def start(self) -> None:
        """Start, and wait for the line about the address."""
        log = self._directory / "regmirror.log"
        log.unlink(missing_ok=True)
        command = [sys.executable, "-m", "regmirror", "--config", str(self._config)]
        command += ["serve", "--listen", self.host]
        if self._workers > 1:
            command += ["--workers", str(self._workers)]
        env = clean_environment(self._directory)
        # The checkout under test, installed or not.
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
        process = Process(command, log=log, env=env, cwd=self._directory)
        self._process = process
        process.wait_ready(lambda: READY.search(process.output()) is not None)

    def stop(self) -> None:
        """End it with SIGTERM; that it ends by itself and cleanly is part of every test."""
        if self._process:
            status = self._process.stop()
            assert status == 0, f"regmirror ended with status {status}:\n{self._process.output()}"
            self._process = None

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process:
            status = self._process.kill()
            assert status == -signal.SIGKILL
            self._process = None

    def output(self) -> str:
        """Return its output since its last start."""
        return (self._directory / "regmirror.log").read_text(errors="replace")

    def get(self, path: str, accept: str = "*/*") -> Response:
        """Request a path."""
        return request(self.url + path, headers={"Accept": accept})
