"""Child processes: started with a clean environment, watched while they start, stopped by their own id."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

LOOPBACK = "127.0.0.1"
POLL_INTERVAL = 0.05


def clean_environment(home: Path) -> dict[str, str]:
    """Return the environment of every child: nothing of the caller's but the search path.

    Proxies, CA bundles and stored registry logins of the machine would change what a test proves.
    """
    sbin = "/usr/local/sbin:/usr/sbin:/sbin"
    return {"PATH": f"{os.environ['PATH']}:{sbin}", "HOME": str(home), "LANG": "C.UTF-8"}


def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    timeout: float = 45,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. With `check`, a failure shows what the command printed."""
    done = subprocess.run(command, env=env, timeout=timeout, capture_output=True, text=True, check=False)
    if check:
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done


def wait_until(is_done: Callable[[], bool], *, timeout: float, description: str) -> None:
    """Poll until `is_done` holds; a failure names the `description`."""
    deadline = time.monotonic() + timeout
    while not is_done():
        assert time.monotonic() < deadline, f"after {timeout} s still waiting for {description}"
        time.sleep(POLL_INTERVAL)


def pick_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port


def accepts(port: int) -> bool:
    """Return whether a process listens on the loopback port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((LOOPBACK, port)) == 0


class Process:
    """A server in the background, in a session of its own, with its output in a file."""

    def __init__(self, command: Sequence[str], *, log: Path, env: Mapping[str, str], cwd: Path) -> None:
        self.log = log
        self._name = log.stem
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                command,
                env=env,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Return the id of the process."""
        return self._child.pid

    def output(self) -> str:
        """Return everything the process has printed."""
        return self.log.read_text(errors="replace")

    def wait_ready(self, is_ready: Callable[[], bool], *, timeout: float = 20) -> None:
        """Wait for readiness; a process that dies instead shows its output."""

        def is_ready_or_dead() -> bool:
            status = self._child.poll()
            assert status is None, f"{self._name} ended with status {status}:\n{self.output()}"
            return is_ready()

        wait_until(is_ready_or_dead, timeout=timeout, description=f"{self._name}, see {self.log}")

    def stop(self, *, grace: float = 10) -> int:
        """Send SIGTERM, kill the process after `grace` seconds, and return its exit status."""
        if self._child.poll() is None:
            self._child.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(grace)
        return self.kill()

    def kill(self) -> int:
        """Kill all processes of its session at once."""
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        return self._child.wait(10)
