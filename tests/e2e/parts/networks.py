"""A second host: a network namespace joined to this one by a cable, with faults of networks and name servers.

    with second_host() as host:
        registry listens on `host.listen()`, or a program runs by `host.command([...])`
        with host.black_hole(port): ...

Rules are set inside the namespace and vanish with it; the tables of this machine are never touched.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.parts.faults import root_command
from tests.e2e.parts.process import Process, clean_environment, wait_until

# 198.18.0.0/15 is set aside for tests of networks (RFC 2544), so no real network has these addresses.
FIRST = (198 << 24) + (18 << 16)
SUBNETS = 1 << 15  # each has 4 addresses
CLONE_NEWNET = 0x40000000
NETNS = Path("/run/netns")
ETC = Path("/etc/netns")
_numbers = itertools.count()


@dataclass(frozen=True)
class SecondHost:
    """The namespace `name`, reached at `address`; there, this machine is `near`."""

    name: str
    near: str
    address: str
    link: str

    # --- inside ---

    def command(self, words: Sequence[str]) -> list[str]:
        """The command to run so that these words run inside."""
        return ["ip", "netns", "exec", self.name, *words]

    def run(self, *words: str) -> str:
        """Run a command inside and return its output."""
        return root_command(*self.command(words))

    def listen(self, port: int = 0) -> socket.socket:
        """A listening socket inside, for a server in this process: a socket stays where it was made."""
        made: list[socket.socket] = []

        def make() -> None:
            # The namespace is one of the calling thread; Python has os.setns from 3.12 on.
            with (NETNS / self.name).open("rb") as namespace:
                failed = ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET)
            if not failed:
                made.append(socket.create_server((self.address, port), backlog=1024))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        assert made, f"no socket in {self.name}"
        return made[0]

    # --- the cable ---

    @contextmanager
    def unplugged(self) -> Iterator[None]:
        """Drop packets silently in both directions."""
        # At the far end: on this side the route would be gone too, and packets would leave by another one.
        root_command("ip", "-n", self.name, "link", "set", self.link, "down")
        try:
            yield
        finally:
            root_command("ip", "-n", self.name, "link", "set", self.link, "up")

    # --- packets ---

    @contextmanager
    def black_hole(self, port: int, protocol: str = "tcp") -> Iterator[None]:
        """Drop packets to this port: new connections hang, and open ones stall."""
        with self._rule("INPUT", "-p", protocol, "--dport", str(port), "-j", "DROP"):
            yield

    @contextmanager
    def unreachable(self, port: int) -> Iterator[None]:
        """Respond to packets with ICMP host unreachable."""
        target = ["-j", "REJECT", "--reject-with", "icmp-host-unreachable"]
        with self._rule("INPUT", "-p", "tcp", "--dport", str(port), *target):
            yield

    @contextmanager
    def reset_after(self, port: int, count: int) -> Iterator[None]:
        """A connection whose server has sent about so many bytes gets an RST."""
        target = ["-j", "REJECT", "--reject-with", "tcp-reset"]
        with self._rule("INPUT", "-p", "tcp", "--dport", str(port), *_beyond(count), *target):
            yield

    @contextmanager
    def silent_after(self, port: int, count: int) -> Iterator[None]:
        """A connection whose server has sent about so many bytes falls silent."""
        with self._rule("INPUT", "-p", "tcp", "--dport", str(port), *_beyond(count), "-j", "DROP"):
            yield

    @contextmanager
    def _rule(self, chain: str, *words: str) -> Iterator[None]:
        # The older of the two: its matches and targets are in every kernel that has any.
        self.run("iptables-legacy", "-A", chain, *words)
        try:
            yield
        finally:
            self.run("iptables-legacy", "-D", chain, *words)

    # --- names ---

    def set_resolver(self, address: str, *, options: str = "timeout:1 attempts:1") -> None:
        """The name server of programs inside; they notice a change by themselves."""
        # Written in place: `ip netns exec` has mounted this very file over /etc/resolv.conf.
        (ETC / self.name / "resolv.conf").write_text(f"nameserver {address}\noptions {options}\n")

    @contextmanager
    def name_server(self, names: dict[str, str], directory: Path) -> Iterator[None]:
        """Run dnsmasq inside with these names and addresses; any other name is NXDOMAIN."""
        words = ["dnsmasq", "--keep-in-foreground", "--user=root", "--conf-file=/dev/null", "--pid-file="]
        words += ["--listen-address=127.0.0.1", "--bind-interfaces", "--no-resolv", "--no-hosts"]
        words += ["--log-facility=-", "--log-queries", "--local=/#/", "--cache-size=0"]
        words += [f"--address=/{name}/{address}" for name, address in names.items()]
        env = clean_environment(directory)
        process = Process(self.command(words), log=directory / "dnsmasq.log", env=env, cwd=directory)
        try:
            process.wait_ready(lambda: "started" in process.output())
            self.set_resolver("127.0.0.1")
            yield
        finally:
            process.stop()


def _beyond(count: int) -> list[str]:
    sizes = ["--connbytes", f"{count}:", "--connbytes-dir", "reply", "--connbytes-mode", "bytes"]
    return ["-m", "connbytes", *sizes]


@contextmanager
def second_host() -> Iterator[SecondHost]:
    """A network namespace joined to this machine, without another network or a working name server."""
    host = _describe(f"rm{os.getpid()}-{next(_numbers)}")
    etc = ETC / host.name
    try:
        etc.mkdir(parents=True)
        host.set_resolver("127.0.0.1")
        (etc / "hosts").write_text("127.0.0.1 localhost\n")
        _join(host)
        yield host
    finally:
        _take_away(host, etc)


def _describe(name: str) -> SecondHost:
    """The first subnet from a place of our own on that no route leads to."""
    routes = root_command("ip", "route", "show")
    start = os.getpid() * 8
    for number in range(start, start + 64):
        base = FIRST + number % SUBNETS * 4
        subnet, near, far = (socket.inet_ntoa((base + offset).to_bytes(4, "big")) for offset in range(3))
        if f"{subnet}/30" not in routes:
            return SecondHost(name, near, far, f"{name}b")
    raise AssertionError("no free subnet")


def _join(host: SecondHost) -> None:
    here = f"{host.name}a"
    root_command("ip", "netns", "add", host.name)
    root_command("ip", "link", "add", here, "type", "veth", "peer", "name", host.link, "netns", host.name)
    root_command("ip", "addr", "add", f"{host.near}/30", "dev", here)
    root_command("ip", "link", "set", here, "up")
    root_command("ip", "-n", host.name, "addr", "add", f"{host.address}/30", "dev", host.link)
    root_command("ip", "-n", host.name, "link", "set", "lo", "up")
    root_command("ip", "-n", host.name, "link", "set", host.link, "up")
    wait_until(lambda: _answers(host), timeout=5, description=f"the cable to {host.name}")


def _answers(host: SecondHost) -> bool:
    """Whether packets arrive: a closed port rejects a connection at once."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((host.address, 9)) == errno.ECONNREFUSED


def _take_away(host: SecondHost, etc: Path) -> None:
    """Remove all parts of it that exist. An open socket keeps the namespace, but not its cable."""
    root_command("ip", "link", "delete", f"{host.name}a", check=False)
    root_command("ip", "netns", "delete", host.name, check=False)
    for file in etc.glob("*"):
        file.unlink()
    with suppress(FileNotFoundError):
        etc.rmdir()
    with suppress(OSError):  # others have namespaces too
        ETC.rmdir()
