"""A real Prometheus that watches one regmirror with the rules that are shipped, in a hurry."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.e2e.parts.process import LOOPBACK, Process, clean_environment, pick_port, run
from tests.e2e.parts.web import request

SHIPPED = Path(__file__).resolve().parents[3] / "deploy" / "prometheus"
INTERVAL = "200ms"


def promtool(*words: str, text: str = "", home: Path) -> tuple[int, str]:
    """Run promtool in the folder of the rules; return its exit status and output."""
    # A shell hands it the text: `run` gives no standard input.
    command = ["sh", "-c", 'file=$1; shift; cd "$0"; exec promtool "$@" <"$file"', str(SHIPPED)]
    file = home / "promtool.stdin"
    file.write_text(text)
    done = run([*command, str(file), *words], env=clean_environment(home), check=False)
    return done.returncode, done.stdout + done.stderr


def hurried(rules: str) -> str:
    """The rules with seconds in place of minutes and hours."""
    rules = re.sub(r"\bfor: \d+[smhd]", "for: 1s", rules)
    return re.sub(r"\[\d+[smhd]\]", "[4s]", rules)


class Prometheus:
    """Scrapes a target and evaluates the rules several times a second."""

    def __init__(self, directory: Path, target: str) -> None:
        directory.mkdir()
        (directory / "alerts.yml").write_text(hurried((SHIPPED / "alerts.yml").read_text()))
        shipped = (SHIPPED / "prometheus.yml").read_text().replace("15s", INTERVAL)
        config = directory / "prometheus.yml"
        config.write_text(shipped.replace("localhost:5000", target))
        self._url = f"http://{LOOPBACK}:{pick_port()}"
        command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={directory / 'data'}"]
        command += [f"--web.listen-address={self._url.removeprefix('http://')}"]
        env = clean_environment(directory)
        self._process = Process(command, log=directory / "prometheus.log", env=env, cwd=directory)

    def wait_ready(self) -> None:
        """Wait until it has read its rules."""
        self._process.wait_ready(self._is_ready)

    def _is_ready(self) -> bool:
        try:
            return request(f"{self._url}/-/ready").status == 200
        except OSError:
            return False

    def query(self, expression: str) -> list[tuple[Mapping[str, str], float]]:
        """The labels and the value of each series that an expression has now."""
        response = request(f"{self._url}/api/v1/query?query={quote(expression)}").json()
        assert response["status"] == "success", response
        return [(each["metric"], float(each["value"][1])) for each in response["data"]["result"]]

    def firing(self) -> dict[str, list[dict[str, Any]]]:
        """The alerts that fire now, by name: their labels and annotations."""
        found: dict[str, list[dict[str, Any]]] = {}
        for alert in request(f"{self._url}/api/v1/alerts").json()["data"]["alerts"]:
            if alert["state"] == "firing":
                found.setdefault(alert["labels"]["alertname"], []).append(alert)
        return found

    def stop(self) -> None:
        """End it."""
        self._process.stop()
